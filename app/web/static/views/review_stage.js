/** One picture large, with what the model looks at on request. */

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { get, imageAddress } from "../api.js";
import { decoded } from "../decoded.js";
import { drawMask } from "../masks.js";
import { ProblemBlock } from "../resource.js";

const OPACITY = 0.6;
const KEPT = 40; // decoded pictures, so that going back and forth waits for nothing
const pictures = new Map();

/** A promise of a decoded picture. */
function picture(path) {
  if (!pictures.has(path)) {
    pictures.set(path, imageAddress(path).then(decoded));
    pictures.get(path).catch(() => pictures.delete(path));
    if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(path);
}

export function Stage({ dataset, job, item, mask, following }) {
  const canvas = useRef(null);
  const [problem, setProblem] = useState(null);
  const path = (entry) => `/datasets/${dataset.id}/images/${entry.index}`;

  useEffect(() => {
    let current = true;
    setProblem(null);
    (async () => {
      const image = await picture(path(item));
      if (!current) return;
      drawMask(canvas.current, image, null, { style: "none", opacity: OPACITY });
      if (!mask) return;
      const answer = await get(`/predict?${new URLSearchParams({ image: `dataset:${dataset.id}/${item.index}`, model: job.model_id, masks: "gaussian,map", top_k: 1 })}`);
      const drawn = answer.predictions[0].mask;
      if (current && drawn) drawMask(canvas.current, image, drawn, { style: drawn.map ? "map" : "ellipse", opacity: OPACITY });
    })().catch((error) => current && setProblem(error));
    for (const entry of following) picture(path(entry)).catch(() => {});
    return () => (current = false);
  }, [item.index, mask]);

  return html`<canvas role="img" aria-label=${`${item.path}${mask ? ", with the mask" : ""}`} ref=${canvas}></canvas><${ProblemBlock} problem=${problem} />`;
}
