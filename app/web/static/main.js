/** Puts the sections together. They know each other only through the events of one bus: datasets, job-started, models-changed. */

import { keys } from "./api.js";
import { datasets } from "./datasets.js";
import { jobs } from "./jobs.js";
import { keyForm } from "./key.js";
import { predict } from "./predict.js";
import { session } from "./session.js";
import { train } from "./train.js";

const bus = new EventTarget();
keyForm();
const sections = { jobs: jobs(bus), predict: predict(bus), datasets: datasets(bus) };

/** The form listens to the list of data sets, so it is made first. */
async function begin() {
  await train(bus);
  await Promise.all([sections.datasets.refresh(), sections.jobs.refresh(), sections.predict.refresh()]);
}

keys.addEventListener("key-changed", begin);
await session();
begin();
