/** What jobs and models are called: their own name, or their method and data set. */

import { get } from "./api.js";
import { catalog, methodTitle } from "./catalog.js";

const datasets = new Map(); // by id: a promise of a name, which never changes

/** A promise of the name of a data set; null for none and for a deleted one. */
function datasetName(id) {
  if (!id) return null;
  if (!datasets.has(id)) {
    datasets.set(id, get(`/datasets/${id}`).then(({ name }) => name, (error) => {
      if (error.status !== 404) datasets.delete(id);
      return null;
    }));
  }
  return datasets.get(id);
}

/** A promise of {method(item), dataset(item), work(item), title(item)} for these jobs or models; `work` is the title of one without a name. Without the catalog a method's own word serves. */
export async function namesOf(items) {
  const ids = [...new Set(items.map((item) => item.dataset_id))];
  const [methods, ...names] = await Promise.all([catalog().catch(() => null), ...ids.map(datasetName)]);
  const byId = new Map(ids.map((id, at) => [id, names[at]]));
  const method = (item) => {
    if (item.type === "predict") return "Scores";
    return methods ? methodTitle(methods, item.method, item.request?.params ?? item.spec?.params) : item.method;
  };
  const dataset = (item) => byId.get(item.dataset_id) ?? null;
  const work = (item) => `${method(item)} on ${dataset(item) ?? "a data set"}`;
  return { method, dataset, work, title: (item) => item.name || work(item) };
}
