/** Starting a training: the form, on the data set that the address names. */

import { html } from "htm/preact";

import { address, navigate } from "../router.js";
import { train } from "../train.js";
import { View, useMounted } from "./view.js";

export default function Train() {
  useMounted(() => train({ chosen: address.peek().query.get("dataset"), started: (job) => navigate(`/ui/jobs/${job.id}`) }));
  return html`<${View} title="Train" lead="Choose a data set and a method. Every field may stay empty: the grey value is what the service uses.">
    <form id="train-form" class="panel" novalidate></form>
  <//>`;
}
