// @ts-check
/** The server's HTTP API, as far as the page uses it. */

/**
 * @typedef {{text: string, confidence: number | null, attention?: number[][], box?: number[]}} Word
 * @typedef {{caption: string, confidence: number | null, logprob: number | null}} Alternative
 * @typedef {Alternative & {file: string, model: string, width: number, height: number, words: Word[],
 *   alternatives: Alternative[], calibrated: boolean, uncertain?: boolean, unhedged?: Alternative,
 *   warning?: string}} Caption
 */

const PATIENCE_MS = 120_000;
const LONGEST_WAIT = 60;
const NO_KEY = { title: "This server wants an API key", detail: "Enter one that it knows, under Options.", status: 401 };

/** An answer other than success, in the words of its problem document (RFC 9457). */
export class Problem extends Error {
  /** @param {{title: string, detail?: string, status?: number}} document */
  constructor({ title, detail = "", status = 0 }) {
    super(title);
    this.title = title;
    this.detail = detail;
    this.status = status;
    /** Seconds after which the server wants to be asked again; 0 if it said nothing about that. */
    this.retryAfter = 0;
  }

  /** Whether the same photo will have the same answer again. */
  get isFinal() {
    return [413, 415, 422].includes(this.status);
  }

  /** @param {Response} response */
  static async from(response) {
    if (response.status === 401) return new Problem(NO_KEY);
    const document = await response.json().catch(() => null);
    const problem = new Problem({
      title: document?.title ?? "The server did not understand",
      detail: document?.detail ?? `It answered ${response.status} ${response.statusText}.`,
      status: response.status,
    });
    if (response.status === 429 || response.status === 503) {
      problem.retryAfter = Math.min(LONGEST_WAIT, Number(response.headers.get("Retry-After")) || 0);
    }
    return problem;
  }
}

/**
 * Caption one photo.
 *
 * @param {Blob} photo
 * @param {string} name
 * @param {object} how
 * @param {Record<string, string>} how.options - fields of the form, such as `num_beams`
 * @param {string} how.key - the API key, or ""
 * @param {AbortSignal} how.signal
 * @param {(text: string) => void} how.onText - takes what the caption so far goes on with
 * @param {(reason: Problem, seconds: number) => void} how.onWait - told before a wait, which the server asked for
 * @returns {Promise<Caption>}
 * @throws {Problem} also where the server cannot be reached; anything at all once the signal is aborted
 */
export async function captionPhoto(photo, name, { options, key, signal, onText, onWait }) {
  const form = new FormData();
  for (const [field, value] of Object.entries({ ...options, attention: "true" })) form.append(field, value);
  form.append("image", photo, name);
  const request = { method: "POST", body: form, headers: authorization(key), signal };
  const deadline = performance.now() + PATIENCE_MS;
  for (let attempt = 1; ; attempt++) {
    try {
      return await stream(await send("v1/captions/stream", request), onText);
    } catch (error) {
      if (!(error instanceof Problem) || !error.retryAfter || performance.now() > deadline) throw error;
      const seconds = Math.max(error.retryAfter, attempt); // less and less often
      onWait(error, seconds);
      await pause(seconds + Math.random() / 4, signal); // not all at the same moment
    }
  }
}

/**
 * The models that the server has, with their default options; what is not known yet of one that is not loaded is left out.
 *
 * @typedef {{id: string, loaded: boolean, device: string | null, sends_photos_to: string | null,
 *   gives: Record<string, true | null>, default_options: Record<string, unknown>, max_beams: number,
 *   max_upload_bytes: number}} Model
 *
 * @param {string} key
 * @returns {Promise<Model[]>}
 */
export async function describeModels(key) {
  const response = await send("v1/models", { headers: authorization(key) });
  return (await response.json()).data.filter((/** @type {{alias_of: string | null}} */ { alias_of }) => !alias_of);
}

/** Whether the server takes photos; false while its model loads. Throws a Problem if nobody answers. */
export async function isReady() {
  try {
    return (await send("readyz", {})).ok;
  } catch (error) {
    if (error instanceof Problem && error.status === 503) return false;
    throw error;
  }
}

/** @param {string} key @returns {Record<string, string>} */
function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** @param {string} path @param {RequestInit} request */
async function send(path, request) {
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Problem({ title: "The server cannot be reached", detail: "Is it running, and are you online?" });
  }
  if (!response.ok) throw await Problem.from(response);
  return response;
}

/**
 * The caption at the end of a stream of events; the words before it go to `onText`.
 *
 * @param {Response} response
 * @param {(text: string) => void} onText
 */
async function stream(response, onText) {
  for await (const { event, data } of serverSentEvents(response)) {
    if (event === "text") onText(data.text);
    if (event === "caption") return data;
    if (event === "error") throw new Problem(data);
  }
  throw new Problem({ title: "The answer broke off", detail: "The server went away before the caption was there." });
}

/**
 * Events as https://html.spec.whatwg.org/multipage/server-sent-events.html has them; EventSource itself cannot POST.
 *
 * @param {Response} response
 */
async function* serverSentEvents(response) {
  const reader = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true, value: "" }));
      if (done) return;
      const blocks = (buffer + value).replaceAll("\r\n", "\n").split("\n\n");
      buffer = /** @type {string} */ (blocks.pop());
      yield* blocks.map(parseEvent).filter(({ data }) => data !== undefined);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @param {string} block */
function parseEvent(block) {
  let event = "message", text = "";
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
    if (field === "event") event = value;
    if (field === "data") text += (text && "\n") + value;
  }
  return { event, data: text ? JSON.parse(text) : undefined };
}

/** @param {number} seconds @param {AbortSignal} signal */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
