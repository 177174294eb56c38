// @ts-check
/** Where a word looked: the photo goes dark, but for the regions that the model's attention was on. */

const SIDE = 96;
const GLIDE_MS = 260;
const FLAT = 4; // a peak counts as at least so many times the mean, so a nearly flat map lights nothing
const NIGHT = [13, 9, 20];
const EMBER = [249, 140, 10];
const DARKNESS = 0.8;

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** @typedef {{cells: number[], rows: number, columns: number}} Grid */

export class Heatmap {
  /** @type {Grid | null} */ #shown = null;
  #frame = 0;

  /** @param {HTMLCanvasElement} canvas @param {HTMLElement} box - both lie over the photo */
  constructor(canvas, box) {
    canvas.width = canvas.height = SIDE;
    this.canvas = canvas;
    this.box = box;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.image = this.context.createImageData(SIDE, SIDE);
  }

  /**
   * @param {number[][]} attention - rows from the top
   * @param {number[] | null} box - left, top, right, bottom as parts of the photo's width and height
   */
  show(attention, box) {
    this.#glide(relativeToPeak(attention));
    this.canvas.classList.add("lit");
    this.box.classList.toggle("lit", box !== null);
    if (!box) return;
    const [left, top, right, bottom] = box.map((part) => 100 * part);
    const place = { left, top, width: right - left, height: bottom - top };
    for (const [side, percent] of Object.entries(place)) this.box.style.setProperty(side, `${percent}%`);
  }

  hide() {
    this.canvas.classList.remove("lit");
    this.box.classList.remove("lit");
  }

  /** From the map on show to the next one. @param {Grid} target */
  #glide(target) {
    const start = performance.now();
    const from = this.#shown?.cells.length === target.cells.length ? this.#shown.cells : target.cells;
    const step = () => {
      const part = still.matches ? 1 : Math.min(1, (performance.now() - start) / GLIDE_MS);
      const ease = part * (2 - part);
      const cells = target.cells.map((value, cell) => from[cell] + (value - from[cell]) * ease);
      this.#shown = { ...target, cells };
      this.#paint(this.#shown);
      if (part < 1) this.#frame = requestAnimationFrame(step);
    };
    cancelAnimationFrame(this.#frame);
    step();
  }

  /** @param {Grid} grid */
  #paint(grid) {
    const { data } = this.image;
    smooth(grid).forEach((strength, pixel) => {
      const dark = 1 - Math.min(1, strength), glow = (1 - dark) ** 1.5;
      NIGHT.forEach((night, channel) => {
        data[4 * pixel + channel] = night + (EMBER[channel] - night) * glow;
      });
      data[4 * pixel + 3] = 255 * DARKNESS * dark ** 1.4;
    });
    this.context.putImageData(this.image, 0, 0);
  }
}

/**
 * In words, for those who cannot see it: "at the top left".
 *
 * @param {number[][]} attention
 */
export function describePlace(attention) {
  const cells = attention.flat(), peak = Math.max(...cells);
  if (peak * cells.length < FLAT) return "all over the photo";
  const index = cells.indexOf(peak), columns = attention[0].length;
  const row = Math.floor((3 * (Math.floor(index / columns) + 0.5)) / attention.length);
  const column = Math.floor((3 * ((index % columns) + 0.5)) / columns);
  const words = [["top", "", "bottom"][row], ["left", "", "right"][column]].filter(Boolean);
  return words.length ? `at the ${words.join(" ")}` : "in the middle";
}

/** @param {number[][]} attention @returns {Grid} - cells that make the smooth map peak at 1 */
function relativeToPeak(attention) {
  const grid = { cells: attention.flat(), rows: attention.length, columns: attention[0].length };
  const mean = grid.cells.reduce((sum, value) => sum + value, 0) / grid.cells.length;
  const peak = Math.max(smooth(grid).reduce((most, value) => Math.max(most, value)), FLAT * mean);
  return { ...grid, cells: grid.cells.map((value) => value / peak) };
}

/** SIDE × SIDE samples of the grid's cubic B-spline: no overshoot, no edges. @param {Grid} grid */
function smooth({ cells, rows, columns }) {
  const across = splineWeights(columns), down = splineWeights(rows);
  const lines = Array.from({ length: rows }, (_, row) =>
    across.map((taps) => taps.reduce((sum, [column, weight]) => sum + weight * cells[row * columns + column], 0)),
  );
  const samples = new Float32Array(SIDE * SIDE);
  down.forEach((taps, y) => {
    for (const [row, weight] of taps) {
      for (let x = 0; x < SIDE; x++) samples[y * SIDE + x] += weight * lines[row][x];
    }
  });
  return samples;
}

/** For each sample along a side, the cells that it is made of, with their weights. @param {number} count */
function splineWeights(count) {
  return Array.from({ length: SIDE }, (_, sample) => {
    const place = ((sample + 0.5) * count) / SIDE - 0.5, first = Math.floor(place) - 1;
    return [0, 1, 2, 3].map((tap) => {
      const distance = Math.abs(first + tap - place);
      const weight = distance < 1 ? (4 - 6 * distance ** 2 + 3 * distance ** 3) / 6 : (2 - distance) ** 3 / 6;
      return [Math.min(count - 1, Math.max(0, first + tap)), weight];
    });
  });
}
