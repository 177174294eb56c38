"use strict";
const stops = document.body.dataset.palette.split(" ").map((stop) => stop.match(/../g).map((hex) => parseInt(hex, 16)));
const palette = Array.from({length: 256}, (_, value) => {
  const place = value / 255 * (stops.length - 1), below = Math.min(Math.floor(place), stops.length - 2);
  return stops[below].map((low, channel) => low + (stops[below + 1][channel] - low) * (place - below));
});
const still = matchMedia("(prefers-reduced-motion: reduce)");

// Rows of bicubic weights (Catmull-Rom), which turn `cells` samples into `pixels` of them, as the PNG strip does.
function bicubic(cells, pixels) {
  return Array.from({length: pixels}, (_, pixel) => {
    const weights = new Float32Array(cells), place = (pixel + .5) * cells / pixels - .5;
    for (let tap = Math.floor(place) - 1; tap <= Math.floor(place) + 2; tap++) {
      const d = Math.abs(tap - place), cell = Math.min(cells - 1, Math.max(0, tap));
      weights[cell] += d < 1 ? 1.5 * d ** 3 - 2.5 * d ** 2 + 1 : -.5 * d ** 3 + 2.5 * d ** 2 - 4 * d + 2;
    }
    return weights;
  });
}

function painter(canvas, columns, rows) {
  canvas.width = canvas.height = 96;
  const across = bicubic(columns, 96), down = bicubic(rows, 96);
  const context = canvas.getContext("2d"), image = context.createImageData(96, 96);
  return (map) => {
    for (let y = 0; y < 96; y++) {
      const line = new Float32Array(columns);
      for (let row = 0; row < rows; row++) {
        if (down[y][row]) for (let column = 0; column < columns; column++) {
          line[column] += down[y][row] * map[row * columns + column];
        }
      }
      for (let x = 0; x < 96; x++) {
        const value = across[x].reduce((sum, weight, column) => sum + weight * line[column], 0);
        image.data.set(palette[Math.round(Math.min(255, Math.max(0, value)))], 4 * (y * 96 + x));
        image.data[4 * (y * 96 + x) + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
  };
}

function attach(figure) {
  const canvas = figure.querySelector("canvas"), box = figure.querySelector(".box");
  const said = figure.querySelector(".said"), buttons = [...figure.querySelectorAll("button")];
  const maps = new Map(buttons.map((button) => [button, button.dataset.map?.split(" ").map(Number)]));
  let pinned = null, shown = null, current = null, frame = 0;
  if (!buttons.length) return;
  const painters = new Map();  // by the grid, of which each model has its own

  function glide(target, columns) {  // from the map on show to the next one, in a quarter of a second
    const grid = `${columns} × ${target.length / columns}`, start = performance.now();
    if (!painters.has(grid)) painters.set(grid, painter(canvas, columns, target.length / columns));
    const paint = painters.get(grid), from = current?.length === target.length ? current : target.map(() => 0);
    cancelAnimationFrame(frame);
    const step = (now) => {
      const part = still.matches ? 1 : Math.min(1, Math.max(0, (now - start) / 250)), ease = part * (2 - part);
      current = target.map((value, cell) => from[cell] + (value - from[cell]) * ease);
      paint(current);
      if (part < 1) frame = requestAnimationFrame(step);
    };
    step(start);
    frame = requestAnimationFrame(step);
  }

  function show(button) {
    if (button === shown) return;
    shown = button;
    for (const other of buttons) other.classList.toggle("on", other === button);
    figure.classList.toggle("lit", Boolean(button && button.dataset.box));
    canvas.style.opacity = maps.get(button) ? document.body.dataset.opacity : 0;
    const sure = button?.dataset.confidence;
    said.textContent = !button ? "" : !sure ? button.textContent : `${button.textContent}: ${Math.round(sure * 100)}% confident`;
    if (!maps.get(button)) return;
    glide(maps.get(button), Number(button.dataset.columns));
    if (button.dataset.box) {
      const [left, top, right, bottom] = button.dataset.box.split(" ").map(Number);
      Object.assign(box.style, {left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`});
    }
  }

  function pin(button) {
    pinned = button;
    for (const other of buttons) other.setAttribute("aria-pressed", other === button);
    show(button);
  }

  for (const button of buttons) {
    button.style.setProperty("--confidence", button.dataset.confidence ?? "0");
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(button));
    button.addEventListener("pointerleave", () => show(pinned));
    button.addEventListener("focus", () => button.matches(":focus-visible") && show(button));
    button.addEventListener("blur", () => show(pinned));
    button.addEventListener("click", () => pin(pinned === button ? null : button));
  }
  figure.addEventListener("keydown", (event) => event.key === "Escape" && pin(null));
}

const legend = document.querySelector(".legend").getContext("2d"), ramp = legend.createImageData(256, 1);
palette.forEach((colour, value) => ramp.data.set([...colour, 255], 4 * value));
legend.putImageData(ramp, 0, 0);
