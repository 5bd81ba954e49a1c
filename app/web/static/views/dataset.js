/** One data set: its pictures, classes, versions of its labels, and what ingest reported. */

import { html } from "htm/preact";
import { useEffect, useMemo, useState } from "preact/hooks";

import { Problem, get } from "../api.js";
import { bytes, number, plural } from "../format.js";
import { namesOf } from "../names.js";
import { ProblemBlock, useResource } from "../resource.js";
import { address } from "../router.js";
import { Classes } from "./classes.js";
import { Exports } from "./exports.js";
import { Labels } from "./labels.js";
import { MapOfPictures } from "./map.js";
import { Pictures } from "./pictures.js";
import { Report } from "./report.js";
import { Tabs } from "./tabs.js";
import { View } from "./view.js";

const TABS = [["pictures", "Pictures", Pictures], ["map", "Map", MapOfPictures], ["classes", "Classes", Classes], ["labels", "Label versions", Labels], ["report", "Report", Report], ["export", "Export", Exports]];

const INGESTING_MS = 1000; // between two looks at a data set whose images are being read

export default function Dataset({ id }) {
  const { data: dataset, problem, reload } = useResource(() => get(`/datasets/${id}`), [id]);
  const { data: jobs } = useResource(() => trainings(id), [id]);
  const [changes, setChanges] = useState(0); // of the labels, made here
  useEffect(() => {
    if (dataset?.status !== "ingesting") return undefined;
    const timer = setTimeout(reload, INGESTING_MS);
    return () => clearTimeout(timer);
  }, [dataset]);
  const chosen = address.value.query.get("tab");
  const [tab, , Tab] = TABS.find(([name]) => name === chosen) ?? TABS[0];
  const changed = () => (setChanges(changes + 1), reload());
  const ready = dataset?.status === "ready";
  const rejection = useMemo(() => (dataset?.status === "failed" ? new Problem(dataset.error ?? { title: "The data set could not be read" }) : null), [dataset]);
  return html`<${View} wide title=${dataset?.name ?? "Data set"} lead=${dataset ? summary(dataset) : " "}
      actions=${ready && jobs ? html`${jobs?.length > 0 && html`<a class="button primary" href=${`/ui/review/${jobs[0].id}`}>Review labels</a>`}
        <a class="button" href=${`/ui/train?dataset=${id}`}>Train on it</a>` : null}>
    <${ProblemBlock} problem=${problem ?? rejection} />
    ${dataset?.status === "ingesting" && html`<p class="quiet">Its images are being read.</p>`}
    ${ready && html`<${Tabs} label="Parts of the data set" tabs=${TABS} chosen=${tab} />
      ${jobs && html`<${Tab} key=${changes} dataset=${dataset} jobs=${jobs} changed=${changed} />`}`}
  <//>`;
}

/** The newest trainings on it that have succeeded and still have their results, each with its `title`. */
async function trainings(id) {
  const { items } = await get(`/jobs?dataset_id=${id}&type=train&status=succeeded&limit=50`);
  const names = await namesOf(items);
  return items.filter((job) => !job.files_deleted_at).map((job) => ({ ...job, title: job.name ?? names.method(job) }));
}

function summary({ status, images, classes, size_bytes: size, label_version: version }) {
  if (status !== "ready") return status;
  return [`${number(images)} pictures`, plural(classes.length, "class", "classes"), bytes(size), `labels version ${version}`].join(" · ");
}
