/** What ingest left out and warned of. */

import { html } from "htm/preact";
import { useRef } from "preact/hooks";

import { ingestReport } from "../dataset.js";
import { useMounted } from "./view.js";

export function Report({ dataset }) {
  const place = useRef(null);
  useMounted(() => void ingestReport(place.current, dataset.id));
  return html`<div class="panel"><div class="report" ref=${place}></div></div>`;
}
