/** A mask drawn over a picture on a canvas: a Gaussian or a map. All numbers are in pixels of the original picture, pixel i covering [i, i + 1). */

const STEPS = 96; // the heat is smooth, so a small field scaled up shows the same
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis, even for colour-blind eyes

/** Draw image, then its mask as `style`: "ellipse", "heat", "map" or "none"; opacity in [0, 1]. The canvas takes the image's size, at most `limit` pixels a side. */
export function drawMask(canvas, image, mask, { style, opacity, limit = 1024 }) {
  const [width, height] = [image.naturalWidth || image.width, image.naturalHeight || image.height];
  // Small pictures are enlarged first, so that the outline is finer than their pixels.
  const scale = Math.min(limit / Math.max(width, height), Math.max(1, Math.floor(512 / Math.max(width, height))));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (style === "map" && mask?.map) map(context, mask.map, scale, opacity);
  if (!mask?.gaussian || style === "none" || style === "map") return;
  const gaussian = Object.fromEntries(Object.entries(mask.gaussian).map(([key, value]) => [key, value * scale]));
  if (style === "heat") heat(context, gaussian, opacity);
  else ellipse(context, gaussian, mask.threshold ?? 0.5, opacity);
}

function ellipse(context, { cx, cy, sigma_x, sigma_y }, threshold, opacity) {
  const { width, height } = context.canvas;
  const reach = Math.sqrt(2 * Math.log(1 / Math.min(Math.max(threshold, 0.01), 0.99)));
  const outline = new Path2D();
  outline.ellipse(cx, cy, reach * sigma_x, reach * sigma_y, 0, 0, 2 * Math.PI);
  const outside = new Path2D(outline);
  outside.rect(0, 0, width, height);
  context.fillStyle = `rgb(10 16 20 / ${0.75 * opacity})`;
  context.fill(outside, "evenodd");
  for (const [color, share] of [["rgb(0 0 0 / 55%)", 0.011], ["#ffffff", 0.005]]) {
    context.strokeStyle = color;
    context.lineWidth = Math.max(1, share * Math.max(width, height));
    context.stroke(outline);
  }
}

function heat(context, { cx, cy, sigma_x, sigma_y }, opacity) {
  const { width, height } = context.canvas;
  const value = (row, column) => {
    const dx = (((column + 0.5) * width) / STEPS - cx) / sigma_x;
    const dy = (((row + 0.5) * height) / STEPS - cy) / sigma_y;
    return Math.exp(-(dx * dx + dy * dy) / 2);
  };
  field(context, STEPS, STEPS, value, opacity, [0, 0, width, height]);
}

/** The map's coarse values over the square that the network saw. */
function map(context, { values, square }, scale, opacity) {
  field(context, values.length, values[0].length, (row, column) => values[row][column], opacity, square.map((edge) => edge * scale));
}

/** Values in [0, 1] as colours, smoothly scaled to a place [x, y, width, height] on the canvas. */
function field(context, rows, columns, value, opacity, place) {
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = [rows, columns];
  const small = canvas.getContext("2d");
  const pixels = small.createImageData(columns, rows);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const strength = value(row, column);
      pixels.data.set([...colour(strength), 255 * opacity * (0.25 + 0.75 * strength)], 4 * (row * columns + column));
    }
  }
  small.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(canvas, ...place);
}

function colour(value) {
  const place = value * (RAMP.length - 1);
  const index = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[index].map((low, channel) => low + (place - index) * (RAMP[index + 1][channel] - low));
}
