/** An address that shows nothing. */

import { html } from "htm/preact";

import { View } from "./view.js";

export default function Missing() {
  return html`<${View} title="There is nothing at this address" lead="It may have been deleted, or the address may be incomplete.">
    <p><a href="/ui/datasets">Data sets</a></p>
  <//>`;
}
