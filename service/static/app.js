// @ts-check
/** The page: photos come in, wait for their turn, and become captions. */

import { Problem, captionPhoto } from "./api.js";
import { Card, doubt, missing } from "./card.js";
import { watchIntake } from "./intake.js";
import { Options } from "./options.js";
import { download, toCsv, toJson } from "./share.js";
import { shrink } from "./shrink.js";
import { Status } from "./status.js";

const AT_ONCE = 3;
const FORM_BYTES = 4096; // of a request, besides the photo
const MAX_LOSSES = 3; // after so many, it may be the photo that takes the server away

/** @type {Card[]} */
let cards = [];

/** @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);
const options = new Options(byId("options"), () => {
  status.watch();
  unlock();
});
const status = new Status(byId("model"), options, resume);

/** @param {string} text - for screen readers, which read only what changes */
function announce(text) {
  byId("live").textContent = byId("live").textContent === text ? `${text}\u00a0` : text;
}

/** @param {File[]} files */
function add(files) {
  if (!files.length || !options.check()) return;
  const added = files.map((file) => new Card(file, { announce, onRetry: again, onRemove: remove }));
  cards.push(...added);
  byId("photos").append(...added.map((card) => card.element));
  announce(files.length === 1 ? `${files[0].name} added` : `${files.length} photos added`);
  work();
  added[0].element.scrollIntoView({ block: "nearest" });
}

/** Put the cards in the order that was chosen; what has no confidence comes last. */
function sort() {
  /** @param {Card} card */
  const key = (card) => card.caption?.confidence ?? null;
  const sign = { sure: -1, unsure: 1 }[/** @type {string} */ (byId("order").value)] ?? 0;
  const sorted = [...cards].sort((one, other) => {
    const first = key(one), second = key(other);
    if (!sign || (first === null && second === null)) return 0;
    if (first === null || second === null) return first === null ? 1 : -1;
    return sign * (first - second);
  });
  if (sorted.some((card, index) => byId("photos").children[index] !== card.element)) {
    byId("photos").append(...sorted.map((card) => card.element));
  }
}

/** Start what may start now: nothing without an API key where one is wanted, or while the server is away. */
function work() {
  const working = cards.filter((card) => card.state === "working").length;
  const room = cards.some(isHeld) ? 0 : Math.max(0, AT_ONCE - working);
  for (const card of cards.filter((card) => card.state === "waiting").slice(0, room)) captionCard(card);
  if (!cards.some((card) => ["waiting", "working"].includes(card.state))) sort(); // nothing moves while it works
  summarize();
}

/** Whether the other photos had better wait for what this one waits for. @param {Card} card */
function isHeld(card) {
  return card.problem?.status === 401 || isLost(card);
}

/** Whether the server went away, and will be asked again by itself. @param {Card} card */
function isLost(card) {
  return card.problem?.status === 0 && card.losses <= MAX_LOSSES;
}

/** Try all again that the server refused for want of an API key, or that were lost with it. */
function unlock() {
  for (const card of cards.filter(isHeld)) card.wait();
  work();
}

/** The server is there again. */
function resume() {
  for (const card of cards.filter(isLost)) card.wait();
  work();
}

/** @param {Card} card */
async function captionCard(card) {
  const { signal } = card.abort;
  card.work();
  try {
    const smaller = card.file.size + FORM_BYTES > status.maxUpload ? await shrink(card.file) : null;
    if (smaller) await request(card, smaller, signal);
    else await request(card, card.file, signal).catch((error) => requestSmaller(card, error, signal));
    const { caption } = card;
    if (caption) announce([`${card.file.name}: ${caption.caption}`, missing(caption), doubt(caption)].filter(Boolean).join(". "));
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Problem)) throw error;
    if (error.status === 0) card.losses += 1;
    card.fail(error);
    announce(`${card.file.name}: ${error.title}. ${error.detail}`);
    if (error.status === 401) options.askForKey();
    if (error.status === 0) status.watch();
  } finally {
    work();
  }
}

/** @param {Card} card @param {Blob} photo - its file, or a smaller copy @param {AbortSignal} signal */
async function request(card, photo, signal) {
  if (photo.type && !photo.type.startsWith("image/")) {
    throw new Problem({ title: "Not a photo", detail: `It is ${photo.type}.`, status: 415 });
  }
  const caption = await captionPhoto(photo, card.file.name, {
    options: { ...options.fields, ...(status.model && { model: status.model }) },
    key: options.key,
    signal,
    onText: (text) => card.write(text),
    onWait: (reason, seconds) => card.hold(reason, seconds),
  });
  card.finish({ ...caption, file: card.file.name }, photo);
  status.noteUse();
}

/**
 * Once more, if that can help.
 *
 * @param {Card} card
 * @param {Problem} error - what came of the first time
 * @param {AbortSignal} signal
 */
async function requestSmaller(card, error, signal) {
  const photo = error.status === 413 ? await shrink(card.file) : null;
  if (!photo) throw error;
  await request(card, photo, signal);
}

/** @param {Card} card */
function again(card) {
  if (!options.check()) return;
  card.losses = 0;
  card.wait();
  unlock();
}

/** @param {Card} card */
function remove(card) {
  const index = cards.indexOf(card);
  card.remove();
  cards = cards.filter((other) => other !== card);
  work();
  const next = cards[Math.min(index, cards.length - 1)];
  (next ? next.element.querySelector("button.remove") : byId("picker")).focus();
}

function summarize() {
  const done = cards.flatMap((card) => card.caption ?? []), failed = cards.filter((card) => card.problem);
  const open = cards.length - done.length - failed.length;
  const photos = cards.length === 1 ? "1 photo" : `${cards.length} photos`;
  const without = failed.length ? ` · ${failed.length} without a caption` : "";
  byId("count").textContent = open ? `${done.length} of ${photos} captioned` : photos + without;
  /** @type {HTMLElement} */ (byId("order").parentElement).hidden = cards.length < 2;
  byId("results").hidden = !cards.length;
  document.body.classList.toggle("begun", cards.length > 0);
  byId("call").textContent = cards.length ? "Add photos" : "Choose photos";
  for (const id of ["json", "csv"]) byId(id).disabled = !done.length;
  byId("again").disabled = open > 0;
}

/** @param {string} id @param {string} type @param {(captions: import("./api.js").Caption[]) => string} write */
function offerDownload(id, type, write) {
  byId(id).addEventListener("click", () => {
    download(`captions.${id}`, type, write(cards.flatMap((card) => card.caption ?? [])));
  });
}

byId("again").addEventListener("click", () => {
  if (!options.check()) return;
  for (const card of cards) card.wait();
  work();
});
byId("order").addEventListener("change", sort);
byId("clear").addEventListener("click", () => {
  for (const card of cards) card.remove();
  cards = [];
  work();
  announce("All photos removed");
  byId("picker").focus();
});
offerDownload("json", "application/json", toJson);
offerDownload("csv", "text/csv", toCsv);
watchIntake(byId("picker"), byId("veil"), add);
status.watch();
