/** The end of a review: the draft becomes a version of the labels, and the next training starts on it. */

import { html } from "htm/preact";
import { useState } from "preact/hooks";

import { post } from "../api.js";
import { announce } from "../dom.js";
import { number } from "../format.js";
import { ProblemBlock, useAction } from "../resource.js";
import { navigate } from "../router.js";
import { Dialog } from "./dialog.js";

const KINDS = ["relabelled", "confirmed", "excluded"];

export function Finish({ dataset, job, draft, closed }) {
  const [note, setNote] = useState("");
  const { busy, problem, run } = useAction();
  const edits = [...draft.edits.value.values()];
  const counts = KINDS.map((kind) => [kind, edits.filter(({ action }) => action === kind).length]).filter(([, count]) => count);
  const publish = (then, leaveOut) => () => run(async () => {
    const made = await draft.publish(note.trim(), leaveOut);
    announce(`Version ${made.version} of the labels`);
    await then(made);
  });
  const retrain = async () => {
    const again = await post(`/jobs/${job.id}/retrain`);
    navigate(`/ui/jobs/${again.id}`);
  };
  const show = () => navigate(`/ui/datasets/${dataset.id}?tab=labels`);
  const discard = () => window.confirm("Discard the draft with all its edits?") && run(async () => {
    await draft.discard();
    closed();
  });
  const moved = problem?.status === 409;
  return html`<${Dialog} title="Publish the draft" closed=${closed}>
    <p>${counts.map(([kind, count]) => `${number(count)} ${kind}`).join(", ")}. They become a new version of the labels of ${dataset.name}; every version stays.</p>
    <div class="field"><label for="finish-note">Note</label><input id="finish-note" type="text" maxlength="2000" value=${note} onInput=${(event) => setNote(event.target.value)} /></div>
    <${ProblemBlock} problem=${problem} />
    <div class="actions">
      <button type="button" class="primary" disabled=${busy} onClick=${publish(retrain)}>Publish and retrain</button>
      <button type="button" disabled=${busy} onClick=${publish(show)}>Publish</button>
      ${moved && html`<button type="button" disabled=${busy} onClick=${publish(show, true)}>Publish without those</button>`}
      <button type="button" class="quiet-button" disabled=${busy} onClick=${discard}>Discard the draft</button>
    </div>
  <//>`;
}
