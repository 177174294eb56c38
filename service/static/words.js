// @ts-check
/** A caption whose words can be pointed at, focused or tapped. */

import { describePlace } from "./heatmap.js";

/** @typedef {import("./api.js").Word} Word */
/** @typedef {import("./api.js").Caption} Caption */

/** @param {number | null} confidence - null where a model's server does not tell it */
export function percent(confidence) {
  return confidence === null ? "" : `${Math.round(100 * confidence)}%`;
}

/** @param {number | null} confidence @param {string} before - what stands before it, if there is one */
export function sure(confidence, before) {
  return confidence === null ? "" : `${before}${percent(confidence)} sure`;
}

/**
 * Fill an element with a caption. One word at a time is in the tab order; arrow keys lead to the others.
 *
 * @param {HTMLElement} element
 * @param {Caption} caption
 * @param {(word: Word | null) => void} onLook - told which word is looked at, or that none is any more
 */
export function showWords(element, caption, onLook) {
  /** @type {Map<HTMLButtonElement, Word>} */
  const words = new Map();
  /** @type {HTMLButtonElement | null} */
  let pinned = null;
  element.replaceChildren(...pieces(caption, words));
  element.setAttribute("role", "toolbar"); // so that screen readers tell of the arrow keys
  element.setAttribute("aria-label", "Caption, word by word");
  const buttons = [...words.keys()];

  /** @param {HTMLButtonElement | null} button */
  function look(button) {
    for (const other of buttons) other.classList.toggle("on", other === button);
    onLook((button && words.get(button)) ?? null);
  }

  /** @param {HTMLButtonElement | null} button */
  function pin(button) {
    pinned = button;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    look(button);
  }

  /** @param {HTMLButtonElement} button */
  function makeTabStop(button) {
    for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
  }

  buttons.forEach((button, index) => {
    button.tabIndex = index ? -1 : 0;
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look(button));
    button.addEventListener("pointerleave", () => look(pinned));
    button.addEventListener("focus", () => {
      makeTabStop(button);
      if (button.matches(":focus-visible")) look(button);
    });
    button.addEventListener("blur", () => look(pinned));
    button.addEventListener("click", () => pin(pinned === button ? null : button));
  });
  element.onkeydown = (event) => {
    const last = buttons.length - 1, at = buttons.findIndex((button) => button === document.activeElement);
    const moves = { ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1), Home: 0, End: last };
    if (event.key === "Escape") return pin(null);
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    buttons[moves[/** @type {keyof typeof moves} */ (event.key)]].focus();
  };
}

/**
 * The caption's words as buttons, with the text between them; words of a prompt, which come first, are text.
 *
 * @param {Caption} caption
 * @param {Map<HTMLButtonElement, Word>} words - is filled, in order
 * @returns {(Node | string)[]}
 */
function pieces({ caption, words: given }, words) {
  const found = [];
  let rest = caption;
  for (const word of given.toReversed()) {
    const start = rest.lastIndexOf(word.text);
    if (start < 0) continue;
    const button = wordButton(word);
    found.unshift({ button, word, after: rest.slice(start + word.text.length) });
    rest = rest.slice(0, start);
  }
  for (const { button, word } of found) words.set(button, word);
  return [rest, ...found.flatMap(({ button, after }) => [button, after])];
}

/** @param {Word} word */
function wordButton(word) {
  const button = document.createElement("button");
  const place = word.attention ? `, looked ${describePlace(word.attention)}` : "";
  button.type = "button";
  button.className = "word";
  button.textContent = word.text;
  button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", `${word.text}${sure(word.confidence, ", ")}${place}`);
  button.style.setProperty("--confidence", String(word.confidence ?? 0));
  return button;
}
