// @ts-check
/** Captions on their way out: to the clipboard and into files. */

/** @typedef {import("./api.js").Caption} Caption */

/** @param {string} text - safe in an attribute in double quotes afterwards, as in an element */
export function escapeHtml(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (character) => entities[/** @type {keyof typeof entities} */ (character)]);
}

/** @param {string} name - of the photo's file @param {string} caption */
export function imageTag(name, caption) {
  return `<img src="${encodeURIComponent(name)}" alt="${escapeHtml(caption)}">`;
}

/** @param {string} text @returns {Promise<boolean>} whether the clipboard has it now */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyTheOldWay(text);
  }
}

/** Where the page is not served over https, or from this machine, there is no other. @param {string} text */
function copyTheOldWay(text) {
  const area = document.createElement("textarea"), focused = document.activeElement;
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}

/** @param {Caption[]} captions */
export function toJson(captions) {
  const models = new Set(captions.map(({ model }) => model));
  return JSON.stringify({ model: models.size > 1 ? undefined : captions[0]?.model, captions }, null, 1) + "\n";
}

const COLUMNS = ["file", "caption", "confidence", "logprob", "model", "width", "height", "alternatives", "warning", "calibrated",
  "uncertain", "unhedged"];

/**
 * The table that `captioner batch` writes, as RFC 4180 has it; the byte order mark tells spreadsheets of UTF-8.
 *
 * @param {Caption[]} captions
 */
export function toCsv(captions) {
  const rows = captions.map((caption) => {
    const others = caption.alternatives.map((other) => other.caption);
    /** @type {Record<string, any>} */
    const cells = { ...caption, alternatives: others.length ? JSON.stringify(others) : "", unhedged: caption.unhedged?.caption };
    return COLUMNS.map((column) => cells[column]);
  });
  return "\ufeff" + [COLUMNS, ...rows].map((row) => row.map(csvCell).join(",") + "\r\n").join("");
}

/** A text that a spreadsheet would run as a formula gets an apostrophe. @param {unknown} value */
function csvCell(value) {
  if (value === undefined || value === null) return "";
  if (typeof value === "boolean") return value ? "True" : "False"; // as `captioner batch` writes it
  const text = typeof value === "string" ? value.replace(/^[=+\-@\t\r]/, "'$&") : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** @param {string} name @param {string} type @param {string} text */
export function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
