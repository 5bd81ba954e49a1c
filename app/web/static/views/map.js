/** The map of a data set: a point for each picture where a training has seen it, alike ones near each other. Draw around some to see them. */

import { html } from "htm/preact";
import { useMemo, useState } from "preact/hooks";

import { get } from "../api.js";
import { number, plural } from "../format.js";
import { pagedItems } from "../paged.js";
import { ProblemBlock, useResource } from "../resource.js";
import { address, navigate, setQuery } from "../router.js";
import { Scatter } from "../scatter.js";
import { keepSelection } from "../selection.js";
import { DatasetPicture } from "../thumbnail.js";
import { PictureGrid } from "./picture_grid.js";

const COLOURS = [["given_label", "Given label"], ["predicted_label", "Suggested label"]];
const GOLDEN_ANGLE = 137.508; // hues that stay apart at any number of classes

export function MapOfPictures({ dataset, jobs }) {
  const { query } = address.value;
  const job = query.get("job") ?? jobs[0]?.id;
  const by = query.get("colour") === "predicted_label" ? "predicted_label" : "given_label";
  const { data, problem } = useResource(() => (job ? get(`/jobs/${job}/artifacts/map.json`) : Promise.resolve(null)), [job]);
  if (!job) return html`<p class="panel">A map is drawn by a training.${" "}<a href=${`/ui/train?dataset=${dataset.id}`}>Train on it</a></p>`;
  if (problem?.status === 404) return html`<p class="panel">This training has left no map: it is older than maps are, or its data set is very small or large.</p>`;
  return html`<${ProblemBlock} problem=${problem} />${data && html`<${Points} key=${`${job} ${by}`} ...${{ dataset, job, jobs, points: data, by }} />`}`;
}

function Points({ dataset, job, jobs, points, by }) {
  const [only, setOnly] = useState(null); // a class
  const [flags, setFlags] = useState(false);
  const [chosen, setChosen] = useState([]); // rows of the map
  const [near, setNear] = useState(null); // the row at the pointer
  const labels = points[by];
  const counts = useMemo(() => {
    const totals = points.classes.map(() => 0);
    for (const label of labels) if (label !== null) totals[label] += 1;
    return totals;
  }, [labels]);
  const rows = useMemo(() => labels.map((_, row) => row).filter((row) => (only === null || labels[row] === only) && (!flags || points.is_label_issue[row])), [only, flags, labels]);
  const colours = points.classes.map((_, id) => `hsl(${Math.round(id * GOLDEN_ANGLE) % 360} 62% ${id % 2 ? 42 : 56}%)`);
  const name = (ids, row) => points.classes[ids[row]] ?? "no label";
  const seen = near ?? (chosen.length === 1 ? chosen[0] : null);
  return html`<div class="filters">
      <div class="field"><label for="map-colour">Colour</label><select id="map-colour" onChange=${(event) => setQuery({ colour: event.target.value })}>
        ${COLOURS.map(([value, title]) => html`<option value=${value} selected=${value === by}>${title}</option>`)}</select></div>
      ${jobs.length > 1 && html`<div class="field"><label for="map-job">Training</label><select id="map-job" onChange=${(event) => setQuery({ job: event.target.value })}>
        ${jobs.map((entry) => html`<option value=${entry.id} selected=${entry.id === job}>${entry.title}</option>`)}</select></div>`}
      <label class="check"><input type="checkbox" checked=${flags} onChange=${() => setFlags(!flags)} /> Flagged only</label>
    </div>
    <div class="map">
      <${Scatter} label=${`Map of ${plural(rows.length, "picture")}`} x=${points.x} y=${points.y} rows=${rows} colour=${(row) => colours[labels[row]] ?? "gray"}
        chosen=${chosen} choose=${setChosen} pointed=${setNear} />
      <div class="map-side">
        <div class="map-picture">${seen === null ? html`<p class="quiet small">Point at a picture, or draw around several.</p>`
          : html`<${DatasetPicture} key=${points.index[seen]} dataset=${dataset.id} index=${points.index[seen]} alt="" /><p class="small">${name(points.given_label, seen)}${points.predicted_label[seen] !== points.given_label[seen] ? html` <span class="quiet">${`→ ${name(points.predicted_label, seen)}`}</span>` : ""}</p>`}</div>
        <ul class="map-legend" aria-label="Classes">${points.classes.map((title, id) => html`<li key=${id}><button type="button" class="legend-item" aria-pressed=${only === id}
          onClick=${() => (setOnly(only === id ? null : id), setChosen([]))} style=${{ "--swatch": colours[id] }}><span>${title}</span><span class="quiet">${number(counts[id])}</span></button></li>`)}</ul>
      </div>
    </div>
    <${Chosen} ...${{ dataset, job, points, rows: chosen, clear: () => setChosen([]) }} />`;
}

/** The pictures that were drawn around, the most suspicious first. */
function Chosen({ dataset, job, points, rows, clear }) {
  const indices = useMemo(() => [...rows].sort((a, b) => (points.label_score[a] ?? 2) - (points.label_score[b] ?? 2)).map((row) => points.index[row]), [rows]);
  const pages = useMemo(() => indices.length && pagedItems(`/datasets/${dataset.id}/images?job=${job}`, { indices }), [indices]);
  if (!pages) return html`<p role="status" class="quiet small">No picture is chosen.</p>`;
  return html`<div class="grid-head"><p role="status">${`${plural(indices.length, "picture")} chosen`}</p>
      <div class="actions"><button type="button" class="small" onClick=${clear}>Choose none</button>
        <button type="button" class="small primary" onClick=${() => navigate(`/ui/review/${job}?selection=${keepSelection(indices)}`)}>Review them</button></div></div>
    <${ProblemBlock} problem=${pages.problem.value} />
    <${PictureGrid} dataset=${dataset} job=${job} pages=${pages} label="Chosen pictures" />`;
}
