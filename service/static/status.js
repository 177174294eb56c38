// @ts-check
/** At the top of the page: which models the server has, which one is chosen, and whether it takes photos. */

import { Problem, describeModels, isReady } from "./api.js";

const POLL_MS = 2000;

export class Status {
  #watching = false;

  /** @type {import("./api.js").Model[]} */
  #models = [];

  /** Bytes of the largest request that the server reads; unknown until it was asked. */
  maxUpload = Infinity;

  /**
   * @param {HTMLElement} element
   * @param {import("./options.js").Options} options - are told what suits the model
   * @param {() => void} onReady - told when the server takes photos
   */
  constructor(element, options, onReady) {
    this.onReady = onReady;
    this.element = element;
    this.text = /** @type {HTMLElement} */ (element.querySelector(".text"));
    this.goal = /** @type {HTMLElement} */ (document.getElementById("goal"));
    this.promise = this.goal.textContent;
    this.choice = /** @type {HTMLElement} */ (document.getElementById("choice"));
    this.select = /** @type {HTMLSelectElement} */ (this.choice.querySelector("select"));
    this.select.addEventListener("change", () => this.#adopt());
    this.options = options;
  }

  /** The model that was chosen; "" where there is one alone, or none is known yet. */
  get model() {
    return this.#models.length > 1 ? this.select.value : "";
  }

  /** A caption has come: a model that was loaded for it is known now. */
  noteUse() {
    if (this.#models.some((model) => !model.loaded && model.id === this.model)) this.watch();
  }

  /** Look, and look again until the model is ready or it takes an API key to know. */
  async watch() {
    if (this.#watching) return;
    this.#watching = true;
    let state = await this.#look();
    while (["warming", "gone"].includes(state)) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      state = await this.#look();
    }
    this.#watching = false;
    if (state === "ready") this.onReady();
  }

  async #look() {
    try {
      if (!(await isReady())) return this.#show("warming", "model is warming up");
      this.#models = await describeModels(this.options.key);
      this.#offer();
      return this.#adopt();
    } catch (error) {
      if (error instanceof Problem && error.status === 401) return this.#show("locked", "needs an API key");
      return this.#show("gone", "server out of reach");
    }
  }

  /** Let people choose where there is a choice; what they chose stays chosen. */
  #offer() {
    const chosen = this.select.value;
    this.select.replaceChildren(...this.#models.map(({ id }) => new Option(id, id, false, id === chosen)));
    this.choice.hidden = this.#models.length < 2;
  }

  /** Go by what is known of the chosen model. */
  #adopt() {
    const model = this.#models.find(({ id }) => id === this.select.value) ?? this.#models[0];
    const server = model.sends_photos_to, place = server ?? model.device;
    this.options.adopt(model);
    this.maxUpload = model.max_upload_bytes;
    this.goal.textContent = server ? `Photos go to this server, which sends them on to ${server}.` : this.promise;
    const name = this.#models.length > 1 ? "" : `${model.id} `;
    return this.#show("ready", place ? `${name}on ${place}` : "loads with the first photo");
  }

  /** @param {"warming" | "ready" | "locked" | "gone"} state @param {string} text */
  #show(state, text) {
    this.element.dataset.state = state;
    if (this.text.textContent !== text) this.text.textContent = text; // it is read aloud when it changes
    return state;
  }
}
