/** A model tried on pictures. */

import { html } from "htm/preact";

import { predict } from "../predict.js";
import { View, useMounted } from "./view.js";

export default function Predict() {
  useMounted(predict);
  return html`<${View} title="Try it" lead="Classify a picture with a trained model: the label, its score, and a mask.">
    <div id="try-panel" class="panel"></div>
  <//>`;
}
