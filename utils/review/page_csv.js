// The decisions as a file: written for the download, read and matched with the samples here.

// Like text_cell in utils/files.py: spreadsheets must not run an untrusted name as a formula.
function cell(value) {
  let text = String(value);
  if (/^[=+\-@']/.test(text) && isNaN(text)) text = "'" + text;
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

// The decisions as rows with the indices of these data.
function rowsToSave() {
  const here = decidedNow().map(suspect => {
    const row = current(suspect);
    return makeRow(suspect, row.decision, classes.get(row.new_label));
  });
  return [...here, ...elsewhere()].sort((a, b) => a.index - b.index);
}

function corrections(rows) {
  return "\ufeff" + [columns, ...rows.map(row => columns.map(column => row[column]))]
    .map(row => row.map(cell).join(",") + "\n").join("");
}

// The rows of a CSV as lists of cells.
function parse(content) {
  const rows = [[]], pattern = /(?:"([^"]*(?:""[^"]*)*)"|)([^,\r\n]*)(,|\r\n|\r|\n|$)/gy;
  for (const [, quoted = "", plain, end] of content.matchAll(pattern)) {
    rows.at(-1).push(quoted.replaceAll('""', '"') + plain);
    if (end !== ",") rows.push([]);
    if (end === "") break;
  }
  return rows.filter(row => row.some(value => value !== ""));
}

// The rows of a file of corrections, keyed by column; null if it is none.
function readRows(content) {
  const [header = [], ...rows] = parse(content), found = header.map(name => name.trim());
  const times = name => found.filter(one => one === name).length;
  if (columns.some(name => name !== "path" && times(name) !== 1)) return null;
  return rows.map(cells => Object.fromEntries(columns.map(column => {
    const value = cells[found.indexOf(column)] ?? "";
    return [column, value.replace(/^'/, "")];
  })));
}

// The index of the sample that a loaded row is about: its own, or that of a suspect with its image and
// label, since the row may be of the round before; undefined for another image.  `taken` has the indices
// of the samples that other rows are about.
function findSample(row, taken) {
  if (fits(row)) return row.index;
  return suspects.find(one => one.image_sha256 === row.image_sha256
    && names[one.given_label] === row.given_label && !taken.has(one.index))?.index;
}

function loadRows(rows) {
  const numbers = {loaded: 0, applied: 0, unknown: 0, broken: 0}, taken = new Map();
  for (const row of rows) {
    row.index = /^\d{1,15}$/.test(row.index) ? Number(row.index) : -1;
    if (row.decision === "relabel" && row.new_label === row.given_label) row.decision = "fine";
    if (row.decision !== "relabel") row.new_label = "";
    if (!isDecision(row) || !isPossible(row)) numbers.broken++;
    else if (isDone(row)) numbers.applied++;
    else {
      const index = findSample(row, taken), suspect = byIndex.get(index);
      numbers[index === undefined ? "unknown" : "loaded"]++;
      if (index === undefined) continue;
      taken.set(index, suspect ? makeRow(suspect, row.decision, classes.get(row.new_label)) : row);
    }
  }
  const kept = keep(taken);
  settle();
  undoable.length = 0;
  update();
  say([amount(numbers.loaded, "decision is loaded", "decisions are loaded"),
    numbers.applied && amount(numbers.applied, "row was applied earlier", "rows were applied earlier"),
    numbers.unknown && amount(numbers.unknown, "row is of another image", "rows are of other images"),
    numbers.broken && amount(numbers.broken, "row has no possible decision",
                             "rows have no possible decision")].filter(Boolean).join(", ")
    + (kept ? "" : UNKEPT));
}
