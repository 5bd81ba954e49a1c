/** Two to eight finished trainings on the same pictures, which the address names by `job`. */

import { html } from "htm/preact";

import { address } from "../router.js";
import { Comparison } from "./comparison.js";
import { JobChooser } from "./job_chooser.js";
import { View } from "./view.js";

export default function Compare() {
  const jobs = address.value.query.getAll("job");
  return html`<${View} wide title="Compare" lead="Trainings on the same pictures: what each gets right, and whether the difference is more than chance.">
    <${JobChooser} chosen=${jobs} />
    ${jobs.length >= 2 && html`<${Comparison} key=${jobs.join()} jobs=${jobs} />`}
  <//>`;
}
