// @ts-check
/** One photo: itself, its caption, and what can be done with both. */

import { Problem } from "./api.js";
import { Heatmap } from "./heatmap.js";
import { copy, imageTag } from "./share.js";
import { percent, showWords, sure } from "./words.js";

/** @typedef {import("./api.js").Caption} Caption */
/** @typedef {"waiting" | "working" | "done" | "failed"} State */

const HINT = "Point at a word to see where the model looked for it";
const TOUCH_HINT = "Tap a word to see where the model looked for it";
const FEEDBACK_MS = 1800;

export class Card {
  /** @type {Caption | null} */ caption = null;
  /** @type {Problem | null} */ problem = null;
  /** How often the server went away with it. */
  losses = 0;
  /** Aborted when the card goes, or begins anew. */
  abort = new AbortController();

  /**
   * @param {File} file
   * @param {{onRetry: (card: Card) => void, onRemove: (card: Card) => void, announce: (text: string) => void}} events
   */
  constructor(file, events) {
    this.file = file;
    this.announce = events.announce;
    this.element = instantiate("card");
    this.heatmap = new Heatmap(/** @type {HTMLCanvasElement} */ (this.#find("canvas")), this.#find(".box"));
    this.#find("h3").textContent = this.#find("h3").title = file.name;
    const remove = this.#find(".remove");
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => events.onRemove(this));
    this.#find(".retry").addEventListener("click", () => events.onRetry(this));
    this.#copies(this.#find(".copy-caption"), () => this.caption?.caption ?? "");
    this.#copies(this.#find(".copy-alt"), () => imageTag(file.name, this.caption?.caption ?? ""));
    this.#loadPhoto();
    this.wait();
  }

  /** In the queue, for the first time or again. */
  wait() {
    this.abort.abort();
    this.abort = new AbortController();
    this.caption = this.problem = null;
    this.heatmap.hide();
    this.#find(".caption").replaceChildren();
    this.#find(".caption").removeAttribute("role");
    this.#note(".warning", "");
    this.#note(".doubt", "");
    this.#enter("waiting", "Waiting for its turn");
  }

  /** At the server. */
  work() {
    this.#enter("working", "Looking");
  }

  /** At the server, which will have it later. @param {Problem} reason @param {number} seconds */
  hold(reason, seconds) {
    this.#say(`${reason.title} · asking again in ${seconds} s`);
  }

  /** The caption goes on. @param {string} text */
  write(text) {
    this.#find(".caption").append(text);
    this.#say("Writing");
  }

  /** @param {Caption} caption @param {Blob} photo - what was captioned: the file, or a smaller copy */
  finish(caption, photo) {
    this.caption = caption;
    const { width, height, alternatives, confidence, model } = caption;
    this.#note(".warning", missing(caption));
    this.#note(".doubt", doubt(caption));
    this.#shape(width / height);
    /** @type {HTMLImageElement} */ (this.#find("img")).alt = caption.caption;
    const pointing = matchMedia("(hover: hover)").matches ? HINT : TOUCH_HINT;
    const hint = caption.words.some((word) => word.attention) ? pointing : "";
    showWords(this.#find(".caption"), caption, (word) => {
      if (word?.attention) this.heatmap.show(word.attention, word.box ? partsOf(word.box, caption) : null);
      else this.heatmap.hide();
      this.#say(word ? `${word.text}${sure(word.confidence, " · ")}` : hint);
    });
    this.#find(".others").hidden = !alternatives.length;
    this.#find(".others ol").replaceChildren(...alternatives.map((other) => this.#other(other)));
    const size = `${photo === this.file ? "" : "sent at "}${width} × ${height}`;
    this.#find(".facts").textContent = `${confidence === null ? "" : `${percent(confidence)} sure · `}${size} · ${model}`;
    this.#enter("done", hint);
  }

  /** @param {Problem} problem */
  fail(problem) {
    this.problem = problem;
    this.#find(".caption").replaceChildren();
    this.#find(".problem .title").textContent = problem.title;
    this.#find(".problem .detail").textContent = asSentence(problem.detail, this.file.name);
    this.#find(".retry").hidden = problem.isFinal;
    this.#enter("failed", "");
  }

  /** Off the page, its work stopped. */
  remove() {
    this.abort.abort();
    URL.revokeObjectURL(/** @type {HTMLImageElement} */ (this.#find("img")).src);
    this.element.remove();
  }

  /** @param {State} state @param {string} text */
  #enter(state, text) {
    this.state = state;
    const article = this.#find(".card");
    article.dataset.state = state;
    article.setAttribute("aria-busy", String(state === "waiting" || state === "working"));
    this.#find(".outcome").hidden = state !== "done";
    this.#find(".problem").hidden = state !== "failed";
    this.#say(text);
  }

  /** @param {string} text */
  #say(text) {
    this.#find(".said").textContent = text;
  }

  /** @param {string} selector @param {string} text - nothing hides it */
  #note(selector, text) {
    this.#find(selector).textContent = text;
    this.#find(selector).hidden = !text;
  }

  #loadPhoto() {
    const img = /** @type {HTMLImageElement} */ (this.#find("img"));
    img.addEventListener("load", () => this.#shape(img.naturalWidth / img.naturalHeight));
    img.addEventListener("error", () => this.#find(".photo").classList.add("no-preview"));
    img.src = URL.createObjectURL(this.file);
  }

  /** @param {number} ratio - the photo's width / height */
  #shape(ratio) {
    this.#find(".photo").style.setProperty("--ratio", String(ratio));
  }

  /** @param {import("./api.js").Alternative} alternative */
  #other({ caption, confidence }) {
    const item = instantiate("alternative"), button = /** @type {HTMLElement} */ (item.querySelector("button"));
    /** @type {HTMLElement} */ (item.querySelector("span")).textContent = caption;
    /** @type {HTMLElement} */ (item.querySelector("small")).textContent = percent(confidence);
    button.setAttribute("aria-label", `Copy “${caption}”`);
    this.#copies(button, () => caption);
    return item;
  }

  /** @param {HTMLElement} button - copies a text and says so @param {() => string} text */
  #copies(button, text) {
    const label = button.querySelector("span"), words = label?.textContent ?? "";
    const use = /** @type {Element} */ (button.querySelector("use"));
    let timer = 0;
    button.addEventListener("click", async () => {
      const done = await copy(text());
      button.style.minWidth = `${button.offsetWidth}px`; // the next button stays where it is
      use.setAttribute("href", done ? "#tick" : "#cross");
      if (label) label.textContent = done ? "Copied" : "Not allowed";
      this.announce(done ? "Copied" : "The browser did not allow to copy");
      clearTimeout(timer);
      timer = setTimeout(() => {
        use.setAttribute("href", "#copy");
        if (label) label.textContent = words;
      }, FEEDBACK_MS);
    });
  }

  /** @param {string} selector @returns {HTMLElement} */
  #find(selector) {
    return /** @type {HTMLElement} */ (this.element.querySelector(selector));
  }
}

/** @param {string} id - of a template @returns {HTMLElement} a copy of what is in it */
function instantiate(id) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById(id));
  return /** @type {HTMLElement} */ (document.importNode(template.content, true).firstElementChild);
}

/** What there is to say of a caption that is not sure, or was not. @param {Caption} caption */
export function doubt({ confidence, uncertain, unhedged }) {
  if (unhedged) return `Not sure of more; the whole caption was “${unhedged.caption}”`;
  return uncertain && confidence !== null ? "Not sure" : ""; // of some models nothing is known
}

/** What is missing of the photo: "The last 15 % of …" for "incomplete: the last 15 % of …". @param {Caption} caption */
export function missing({ warning = "" }) {
  return capitalized(warning.replace(/^\w+: /, ""));
}

/** "is damaged" for "cat.jpg: is damaged", since the name stands above. @param {string} text @param {string} name */
function asSentence(text, name) {
  const rest = text.startsWith(`${name}: `) ? text.slice(name.length + 2) : text;
  return capitalized(rest);
}

/** @param {string} text */
function capitalized(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** @param {number[]} box - in pixels @param {Caption} caption */
function partsOf([left, top, right, bottom], { width, height }) {
  return [left / width, top / height, right / width, bottom / height];
}
