/** A version of the labels as an archive that other programs read. */

import { html } from "htm/preact";
import { useRef, useState } from "preact/hooks";

import { save } from "../files.js";

const FORMATS = [
  ["imagefolder", "Class folders (torchvision ImageFolder)"], ["csv", "Images and a table (CSV)"], ["coco", "COCO"], ["huggingface", "Hugging Face imagefolder"],
  ["labelstudio", "Label Studio"], ["fiftyone", "FiftyOne"], ["webdataset", "WebDataset"],
];

export function Exports({ dataset }) {
  const [format, setFormat] = useState(FORMATS[0][0]);
  const [version, setVersion] = useState(dataset.label_version);
  const [busy, setBusy] = useState(false);
  const problem = useRef(null);
  const path = `/datasets/${dataset.id}/export?format=${format}&version=${version}`;
  async function start(event) {
    event.preventDefault();
    setBusy(true);
    await save(path, `${dataset.name}-${format}-v${version}.${format === "webdataset" ? "tar" : "zip"}`, problem.current);
    setBusy(false);
  }
  return html`<form class="panel" onSubmit=${start}>
    <div class="fields two">
      <div class="field"><label for="export-format">Format</label><select id="export-format" onChange=${(event) => setFormat(event.target.value)}>
        ${FORMATS.map(([name, title]) => html`<option value=${name}>${title}</option>`)}</select></div>
      <div class="field"><label for="export-version">Version of the labels</label>
        <input id="export-version" type="number" min="1" max=${dataset.label_version} value=${version} required onInput=${(event) => setVersion(event.target.value)} /></div>
    </div>
    <div class="actions"><button class="primary" disabled=${busy}>${busy ? "Exporting" : "Export"}</button>
      <span class="field-help">Excluded pictures are left out. By command: <code>${`curl -OJ '${location.origin}${path}'`}</code></span></div>
    <div ref=${problem}></div>
  </form>`;
}
