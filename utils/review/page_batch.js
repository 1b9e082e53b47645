// Decisions about one suspect or several, each undone as one, and the selection of several.

let selected = new Set(), range = null;  // suspects; where shift began, and what was selected then
const undoable = [];  // of each action, what was decided before, null for nothing, by index

// What a decision at this suspect is about: all that are selected if it is one of them.
function affected(suspect) {
  return !detail.open && selected.has(suspect) ? shown.filter(one => selected.has(one)) : [suspect];
}

function decide(targets, kind, label, moves = true) {
  const possible = targets.filter({accept: differs, undo: current}[kind] ?? (() => true));
  const who = one => one.length === 1 ? `Suspect ${one[0].rank}` : `${one.length} suspects`;
  if (!possible.length)
    return say(`${who(targets)}: ` + (kind === "undo" ? "nothing to undo"
      : "the suggestion is the label; if that is right, press F"));
  const left = targets.length - possible.length, before = new Map();
  for (const one of possible) before.set(one.index, own.get(one.index) ?? null);
  const kept = keep(new Map(possible.map(one => [one.index, rowOf(one, kind, label)])));
  undoable.push(before);
  refresh(possible);
  const told = possible.length === 1 ? describe(possible[0]) : {accept: "relabelled as suggested",
    relabel: `relabelled: ${isolate(names[label])}`, fine: "label is right", remove: "to be removed",
    undo: "undecided"}[kind];
  say(`${who(possible)}: ${told}` + (left ? ` (${left} left alone)` : "") + (kept ? "" : UNKEPT),
    {undo: true});
  const next = shown.indexOf(targets.at(-1)) + 1;
  if (targets.length > 1) setSelected(new Set());
  if (!moves || kind === "undo" || !byId("moves").checked) return;
  if (trail.length) goBack();
  else if (next < shown.length) goTo(next);
}

function rowOf(suspect, kind, label) {
  if (kind === "undo") return null;
  if (kind === "accept") [kind, label] = ["relabel", suspect.suggested_label];
  if (kind === "relabel" && label === suspect.given_label) kind = "fine";
  return makeRow(suspect, kind, label);
}

function undoLast() {
  const before = undoable.findLast(one => one.size);
  undoable.length = before ? undoable.lastIndexOf(before) : 0;
  if (!before) return say("Nothing to undo.");
  const kept = keep(before), changed = [...before.keys()].map(index => byIndex.get(index));
  refresh(changed);
  say((changed.length === 1 ? `Suspect ${changed[0].rank}: ${describe(changed[0])} again`
    : `${changed.length} suspects are as before`) + (kept ? "" : UNKEPT));
  const place = shown.indexOf(changed[0]);
  if (place >= 0 && changed[0] !== viewed()) goTo(place);
}

function setSelected(suspects) {
  const changed = [...selected, ...suspects];
  selected = suspects;
  refresh(changed);
  byId("batch").classList.toggle("on", selected.size > 0);
  document.body.classList.toggle("selecting", selected.size > 0);
  byId("selected").textContent = selected.size
    ? amount(selected.size, "suspect selected", "suspects selected") : "";
}

function toggle(suspect) {
  range = null;
  const next = new Set(selected);
  if (!next.delete(suspect)) next.add(suspect);
  setSelected(next);
}

// Selects, beside what was selected before, from the place where shift began, or else from the place
// `from`, to the place `to`.
function extend(from, to) {
  range ??= {start: from, before: selected};
  const [first, last] = [range.start, to].sort((a, b) => a - b);
  setSelected(new Set([...range.before, ...shown.slice(first, last + 1)]));
}

for (const button of document.querySelectorAll("#batch button[data-kind]"))
  button.onclick = () => {
    stopTile()?.focus();
    decide(shown.filter(one => selected.has(one)), button.dataset.kind);
  };
const batchChooser = makeChooser(() => "", (value, moves) => {
  batchChooser.value = "";
  decide(shown.filter(one => selected.has(one)), "relabel", Number(value), moves);
  if (document.activeElement === batchChooser) stopTile()?.focus();
}, () => stopTile()?.focus());
batchChooser.tabIndex = 0;
byId("clear").before(batchChooser);
byId("clear").onclick = () => { setSelected(new Set()); stopTile()?.focus(); };
byId("all").onclick = () => { range = null; setSelected(new Set(shown)); stopTile()?.focus(); };
byId("undoLast").onclick = undoLast;
