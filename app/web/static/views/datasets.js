/** All data sets, newest first, and the form that uploads one. */

import { html } from "htm/preact";

import { datasets } from "../datasets.js";
import { View, useMounted } from "./view.js";

const ARCHIVES = ".zip,.tar,.gz,.tgz,.zst,application/zip,application/x-tar,application/gzip,application/zstd";
const COLUMNS = [
  ["path", "Path column", "The column of image paths. Empty: chosen from the table."],
  ["label", "Label column", "The column of given labels to learn from. Empty: chosen from the table."],
  ["clean", "Clean column", "The true labels, if known. Used to measure, never to train."],
];

export default function Datasets() {
  useMounted(datasets);
  return html`<${View} title="Data sets" lead="Pictures with labels, some of them wrong. Upload an archive: one folder per class, or pictures and a table of labels.">
    <form id="upload-form" class="panel" novalidate>
      <label id="upload-drop" class="drop" for="upload-file">
        <input id="upload-file" type="file" accept=${ARCHIVES} />
        <span class="drop-text"><strong id="upload-chosen">Choose an archive</strong>${" "}<span>or drop it here · zip, tar, tar.gz, tar.zst</span></span>
      </label>
      <div class="actions">
        <input id="upload-folder" type="file" webkitdirectory hidden />
        <button type="button" class="small" id="upload-folder-button">Choose a folder instead</button>
      </div>
      <div class="fields">
        <div class="field wide"><label for="upload-name">Name</label><input id="upload-name" type="text" maxlength="200" autocomplete="off" /></div>
      </div>
      <details class="more" id="upload-table">
        <summary>The archive has a table of labels</summary>
        <datalist id="upload-columns"></datalist>
        <p id="upload-sample" class="field-help" hidden></p>
        <div class="fields">${COLUMNS.map(column)}</div>
      </details>
      <div class="actions">
        <button class="primary" id="upload-button">Upload</button>
        <button type="button" id="upload-cancel" hidden>Stop</button>
        <div id="upload-progress" class="progress-line" hidden>
          <progress id="upload-bar" max="1" aria-label="Upload"></progress>
          <span id="upload-text"></span>
        </div>
      </div>
      <div id="upload-problem"></div>
    </form>
    <div id="datasets-problem"></div>
    <ul id="dataset-list" class="rows" aria-label="Data sets"></ul>
    <button type="button" id="datasets-more" class="more-rows" hidden>Show older</button>
  <//>`;
}

function column([name, label, help]) {
  const id = `upload-${name}-column`;
  return html`<div class="field">
    <label for=${id}>${label}</label>
    <input id=${id} type="text" list="upload-columns" autocomplete="off" spellcheck="false" aria-describedby=${`upload-${name}-help`} />
    <p id=${`upload-${name}-help`} class="field-help">${help}</p>
  </div>`;
}
