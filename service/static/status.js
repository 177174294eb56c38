// @ts-check
/** At the top of the page: which model the server runs, and whether it takes photos. */

import { Problem, describeModel, isReady } from "./api.js";

const POLL_MS = 2000;

export class Status {
  #watching = false;

  /** Bytes of the largest request that the server reads; unknown until it was asked. */
  maxUpload = Infinity;

  /** @param {HTMLElement} element @param {import("./options.js").Options} options - are told what suits the model */
  constructor(element, options) {
    this.element = element;
    this.text = /** @type {HTMLElement} */ (element.querySelector(".text"));
    this.goal = /** @type {HTMLElement} */ (document.getElementById("goal"));
    this.options = options;
  }

  /** Look, and look again until the model is ready or it takes an API key to know. */
  async watch() {
    if (this.#watching) return;
    this.#watching = true;
    while (["warming", "gone"].includes(await this.#look())) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    this.#watching = false;
  }

  async #look() {
    try {
      if (!(await isReady())) return this.#show("warming", "model is warming up");
      const model = await describeModel(this.options.key);
      this.options.adopt(model);
      this.maxUpload = model.max_upload_bytes;
      const server = model.sends_photos_to;
      if (server) this.goal.textContent = `Photos go to this server, which sends them on to ${server}.`;
      return this.#show("ready", `${model.id} on ${server ?? model.device}`);
    } catch (error) {
      if (error instanceof Problem && error.status === 401) return this.#show("locked", "needs an API key");
      return this.#show("gone", "server out of reach");
    }
  }

  /** @param {"warming" | "ready" | "locked" | "gone"} state @param {string} text */
  #show(state, text) {
    this.element.dataset.state = state;
    if (this.text.textContent !== text) this.text.textContent = text; // it is read aloud when it changes
    return state;
  }
}
