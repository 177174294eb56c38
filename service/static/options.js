// @ts-check
/** How to caption: what the form says, and nothing where it leaves the choice to the model. */

const KEY = "captioner.key";

export class Options {
  /** @param {HTMLDetailsElement} panel @param {() => void} onKey - told when another API key was entered */
  constructor(panel, onKey) {
    this.panel = panel;
    this.form = /** @type {HTMLFormElement} */ (panel.querySelector("form"));
    this.keyField = this.#input("key");
    this.keyField.value = sessionStorage.getItem(KEY) ?? "";
    this.keyField.addEventListener("change", () => {
      if (this.key) sessionStorage.setItem(KEY, this.key);
      else sessionStorage.removeItem(KEY);
      this.keyField.removeAttribute("aria-invalid");
      onKey();
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", () => this.#summarize());
    this.#input("num_beams").addEventListener("change", () => this.#keepEnoughBeams("alternatives"));
    this.#input("alternatives").addEventListener("change", () => this.#keepEnoughBeams("num_beams"));
  }

  get key() {
    return this.keyField.value.trim();
  }

  /** @returns {Record<string, string>} fields of the request */
  get fields() {
    const filled = [...new FormData(this.form)].map(([name, value]) => [name, String(value).trim()]);
    return Object.fromEntries(filled.filter(([, value]) => value));
  }

  /** Whether all that was entered is in range; if not, the form is shown and the browser says why. */
  check() {
    if (this.form.checkValidity()) return true;
    this.panel.open = true;
    return this.form.reportValidity();
  }

  /** @param {import("./api.js").Model} model */
  adopt({ default_options: defaults, max_beams: most, gives }) {
    for (const name of ["num_beams", "alternatives"]) this.#input(name).disabled = gives.beams === null; // then neither is sent
    const detail = this.#input("detail");
    detail.disabled = !gives.details;
    /** @type {HTMLElement} */ (detail.parentElement).hidden = detail.disabled;
    this.#input("num_beams").max = String(most);
    this.#input("alternatives").max = String(most - 1);
    for (const name of ["num_beams", "max_length"]) {
      this.#input(name).placeholder = name in defaults ? `auto (${defaults[name]})` : "auto";
    }
    this.#summarize();
  }

  /** Show where the API key goes, which the server wants or did not know. */
  askForKey() {
    this.panel.open = true;
    this.keyField.setAttribute("aria-invalid", "true");
    this.keyField.focus();
  }

  /** The search keeps as many captions as it has beams: the field that was not touched follows the other. */
  #keepEnoughBeams(/** @type {string} */ follower) {
    const beams = this.#input("num_beams"), others = this.#input("alternatives");
    if (!beams.value || beams.valueAsNumber > others.valueAsNumber) return;
    if (follower === "num_beams") beams.value = String(others.valueAsNumber + 1);
    else others.value = String(Math.max(0, beams.valueAsNumber - 1));
    this.#summarize();
  }

  /** Beside the summary: what a closed form would hide. */
  #summarize() {
    const labels = [...this.form.elements].filter(
      (element) => (element instanceof HTMLInputElement && element.name && !element.disabled && element.value !== element.defaultValue)
        || (element instanceof HTMLSelectElement && !element.disabled && element.value),
    ).map((element) => {
      const { labels, value } = /** @type {HTMLInputElement | HTMLSelectElement} */ (element);
      if (element instanceof HTMLSelectElement) return element.selectedOptions[0].text;
      return `${labels?.[0].textContent?.toLowerCase()} ${value || "auto"}`;
    });
    /** @type {HTMLElement} */ (this.panel.querySelector(".changed")).textContent = labels.join(" · ");
  }

  /** @param {string} name */
  #input(name) {
    return /** @type {HTMLInputElement} */ (this.form.elements.namedItem(name));
  }
}
