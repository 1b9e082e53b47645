// The decisions: what they mean for the suspects of this page, and how the browser keeps them.

// A decision is a row of the corrections, keyed by column, with the `run` that its index belongs to, the
// number of the copy (of identical images with the same label) and the time.  The browser keeps it under
// the run and the index.
const runKey = index => RUN_PREFIX + index;
const byIndex = new Map(suspects.map(suspect => [suspect.index, suspect]));
const imageKey = row => JSON.stringify([row.image_sha256, row.copy ?? 0, row.given_label]);
const byImage = new Map(suspects.map(suspect => [imageKey(makeRow(suspect, "fine")), suspect]));

// `decisions` has all that this browser knows, by key; `unkept`, those that it did not store, null for
// undone ones; `own`, the decisions of this run, by index; `foreign`, those of other ones, by image.
const decisions = new Map(), unkept = new Map();
const decidedEarlier = suspects.filter(suspect => suspect.decided);
let own = new Map(), foreign = new Map();

const wasApplied = new Set(applied.map(cells => JSON.stringify(cells)));

function isApplied(row) {
  const cells = [row.image_sha256, row.given_label, row.decision, row.new_label];
  return wasApplied.has(JSON.stringify(cells));
}

function load() {
  try {
    for (const [key, value] of Object.entries(localStorage))
      if (key.startsWith(PREFIX)) take(key, value);
  } catch {}  // some browsers store nothing for local files
  for (const [key, row] of unkept) set(key, row);
  settle();
}

function take(key, value) {
  try {
    let row = JSON.parse(value);
    // Earlier pages stored {kind, row}, where row lists the cells in the order of the columns.
    if (row?.row) row = Object.fromEntries(columns.map((column, place) => [column, row.row[place]]));
    if (row && key.startsWith(RUN_PREFIX))
      Object.assign(row, {run, index: Number(key.slice(RUN_PREFIX.length))});
    if (row === null || isDecision(row)) set(key, row);
  } catch {}
}

function isDecision(row) {
  return columns.every(column => column === "index" || typeof row[column] === "string")
    && kinds.includes(row.decision) && Number.isInteger(row.index) && row.index >= 0;
}

function set(key, row) {
  if (row) decisions.set(key, row);
  else decisions.delete(key);
}

function settle() {
  own = new Map();
  foreign = new Map();
  for (const [key, row] of decisions) {
    if (row.run === run && fits(row)) {
      if (key === runKey(row.index) || !own.has(row.index)) own.set(row.index, row);
    } else if ((row.time ?? 0) >= (foreign.get(imageKey(row))?.time ?? 0)) foreign.set(imageKey(row), row);
  }
}

// Whether the sample at the row's index has its image and its label.
function fits(row) {
  const {digits, start, length, labels} = checks, suspect = byIndex.get(row.index);
  if (!(row.index < samples) || names[labels[row.index]] !== row.given_label) return false;
  return suspect ? suspect.image_sha256 === row.image_sha256
    : digits.slice(length * row.index, length * (row.index + 1))
      === row.image_sha256.slice(start, start + length);
}

// Keeps rows, by the index of their sample, null for none, and returns whether the browser stored all.
// Each has a key of its own, because another tab may store others meanwhile.
function keep(rows) {
  const earlier = [...decisions].filter(([key, one]) => one.run === run && rows.has(one.index)
    && key !== runKey(one.index)).map(([key]) => key);  // under keys of an earlier page
  let kept = true;
  for (const [index, row] of rows) {
    const stored = row && {...row, run, time: Date.now()};
    kept = store(runKey(index), stored) && kept;
    if (stored) own.set(index, stored);
    else own.delete(index);
  }
  for (const key of earlier) kept = store(key, null) && kept;
  return kept;
}

function store(key, row) {
  set(key, row);
  try {
    if (row) localStorage.setItem(key, JSON.stringify(row));
    else localStorage.removeItem(key);
    unkept.delete(key);
    return true;
  } catch {
    unkept.set(key, row);
    return false;
  }
}

const UNKEPT = ".  The browser could not store this: download the corrections before you close the "
  + "page.";

function isPossible(row) { return row.decision !== "relabel" || classes.has(row.new_label); }

// A decision that was applied can wait again, about an identical image that is still there; a label that
// was found right needs no second time.
function isDone(row) { return isApplied(row) && (row.decision === "fine" || !fits(row)); }

// The decision about a suspect that waits to be applied.
function current(suspect) {
  const row = own.get(suspect.index);
  return row && isPossible(row) && !isDone(row) ? row : undefined;
}

function decidedNow() {
  return [...own.keys()].map(index => byIndex.get(index)).filter(suspect => suspect && current(suspect));
}

// The decisions of this run about samples that are not on this page.
function elsewhere() {
  return [...own.values()].filter(row => !byIndex.has(row.index) && isPossible(row));
}

// By suspect, what another review in this browser decided about its image, as a decision of this run.  It
// counts only once the reviewer says so: the images and classes of unrelated data sets can be the same.
function offers() {
  const found = new Map();
  for (const row of foreign.values()) {
    if (!isPossible(row) || isApplied(row)) continue;
    const same = byImage.get(imageKey(row));
    // Where the data have the new label already, that is right.
    const suspect = same ?? byImage.get(imageKey({...row, given_label: row.new_label}));
    const kind = same ? row.decision : "fine";
    if (!suspect || current(suspect) || (kind === "fine" && suspect.decided)) continue;
    if (same || !found.has(suspect))
      found.set(suspect, makeRow(suspect, kind, classes.get(row.new_label)));
  }
  return found;
}

function makeRow(suspect, kind, label) {
  return {index: suspect.index, path: suspect.path ?? "", given_label: names[suspect.given_label],
    decision: kind, new_label: kind === "relabel" ? names[label] : "",
    image_sha256: suspect.image_sha256, copy: suspect.copy};
}
