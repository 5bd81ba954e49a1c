/** One prediction shown: the picture with its mask, the label, the scores. Knows a canvas and an answer, no request. */

import { radios } from "./choices.js";
import { announce, fill, h } from "./dom.js";
import { duration, number, percent } from "./format.js";
import { drawMask } from "./masks.js";

export function predictionView() {
  const canvas = h("canvas", { role: "img" });
  const words = h("div", { class: "answer" });
  const style = radios({
    legend: "Mask", style: "segments", changed: redraw,
    options: [{ value: "ellipse", title: "Ellipse" }, { value: "heat", title: "Heat" }, { value: "map", title: "Map" }, { value: "none", title: "Off" }],
  });
  const opacity = h("input", { type: "range", id: "mask-opacity", min: 0, max: 1, step: 0.05, value: 0.6, on: { input: redraw } });
  const controls = h("div", { class: "mask-controls" }, style.element,
    h("div", { class: "field" }, h("label", { for: "mask-opacity" }, "Opacity"), opacity));
  const element = h("div", { class: "result", hidden: true }, h("div", { class: "picture" }, canvas, controls), words);
  let current = null;

  function redraw() {
    if (!current) return;
    drawMask(canvas, current.image, current.mask, { style: style.value(), opacity: Number(opacity.value) });
  }

  function draw(prediction, image, answer, name) {
    current = { image, mask: prediction.mask };
    style.offer(drawable(prediction.mask));
    controls.hidden = !prediction.mask;
    element.hidden = false;
    redraw();
    const verdict = prediction.abstained ? "not sure" : prediction.label;
    const text = `${name}: ${verdict}, score ${percent(prediction.score)}`;
    canvas.setAttribute("aria-label", prediction.mask ? `${text}; the mask covers ${percent(prediction.mask.area_fraction ?? prediction.mask.map.area_fraction, 0)} of the picture` : text);
    announce(text);
    fill(words,
      h("p", { class: "verdict" }, verdict),
      h("ol", { class: "scores", "aria-label": "Scores" }, prediction.top_k.map((entry) =>
        h("li", { vars: { share: entry.score } }, h("span", { class: "score-label" }, entry.label), h("span", { class: "score-value" }, percent(entry.score))))),
      facts(prediction, answer));
  }
  return { element, draw };
}

/** The styles that a mask can be drawn in: a method without a localization module has a map alone. */
const drawable = (mask) => [...(mask?.gaussian ? ["ellipse", "heat"] : []), ...(mask?.map ? ["map"] : []), "none"];

function facts({ image, mask }, { model, timing_seconds: timing }) {
  const g = mask?.gaussian;
  return h("dl", { class: "facts" },
    image && [h("dt", {}, "Picture"), h("dd", {}, `${number(image.width)} × ${number(image.height)} px`)],
    g && [h("dt", {}, "Points at"), h("dd", {}, `${number(g.cx, 0)}, ${number(g.cy, 0)} · σ ${number(g.sigma_x, 1)} × ${number(g.sigma_y, 1)} px`)],
    !g && [h("dt", {}, "Mask"), h("dd", {}, mask ? "a map of what stands out: this method has no localization module" : "this model has none")],
    model && [h("dt", {}, "Model"), h("dd", {}, [model.method, model.alias].filter(Boolean).join(" · "))],
    timing && [h("dt", {}, "Time"), h("dd", {}, duration(Object.values(timing).reduce((sum, entry) => sum + entry, 0)))]);
}
