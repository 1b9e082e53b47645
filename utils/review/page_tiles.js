// What is known of a suspect, as tiles show it and in part the detail view, with the buttons to decide.

function describe(suspect) {
  const row = current(suspect), old = suspect.decided;
  if (row) return {relabel: `relabelled: ${isolate(row.new_label)}`, fine: "label is right",
                   remove: "to be removed"}[row.decision];
  if (!old) return "undecided";
  return "decided earlier: " + (old.decision === "relabel"
    ? `relabelled from ${isolate(old.given_label)} to ${isolate(old.new_label)}` : "label is right");
}

// As <bdi> does, where there is only text.
function isolate(name) { return `\u2068${name}\u2069`; }

// The value that the chooser of a suspect shows.
function chosen(suspect) {
  const row = current(suspect);
  // A suspect whose label is right shows the given class, so that a choice of another one is a change.
  if (!row || row.decision === "remove") return "";
  return String(names.indexOf(row.new_label || names[suspect.given_label]));
}

// Everything that shows a suspect: its tile, and the detail view where that is open.
function views() { return document.querySelectorAll("[data-index]"); }

function refresh(changed) {
  const wanted = new Set(changed);
  for (const view of views()) {
    const suspect = byIndex.get(Number(view.dataset.index));
    if (wanted.has(suspect)) fill(view, suspect);
  }
  count();
}

function fill(view, suspect) {
  const row = current(suspect), select = view.querySelector("select");
  view.dataset.decision = row ? row.decision : "";
  view.dataset.state = row ? row.decision : suspect.decided ? "earlier" : "open";
  view.querySelector(".decided").textContent = describe(suspect);
  view.querySelector(".undo").disabled = !row;
  if (chosen(suspect) !== "") addOptions(select);
  select.value = chosen(suspect);
  const box = view.querySelector(".select");
  if (box) box.ariaChecked = String(selected.has(suspect));
  view.setAttribute("aria-label", `Suspect ${suspect.rank}: labelled ${names[suspect.given_label]}, `
    + `suggested ${names[suspect.suggested_label]}, ${suspect.sure ? "sure, " : ""}`
    + twins(suspect).map(([before, one]) => `${before}${file(one)}, labelled ${names[one.given_label]}, `)
      .join("")
    + describe(suspect) + (box && selected.has(suspect) ? ", selected" : ""));
}

function makeTile(suspect) {
  const tile = element("article", "", {tabIndex: -1, role: "group"});
  tile.dataset.index = suspect.index;
  const picture = element("div", "", {className: "picture"});
  picture.append(makePicture(suspect), element("button", "", {className: "select", role: "checkbox",
    tabIndex: -1, ariaLabel: `select suspect ${suspect.rank}`, onclick: () => toggle(suspect)}),
    element("p", "", {className: "decided"}), makeButton(suspect, "undo", tile));
  const facts = element("div", "", {className: "facts"});
  facts.append(labelled("labelled ", suspect.given_label, suspect.given_probability),
    labelled("suggested ", suspect.suggested_label, suspect.suggested_probability, suspect.sure),
    element("p", `#${suspect.rank} · score ${suspect.score.toPrecision(4)} · disagreed `
      + `${Math.round(suspect.disagreement * checkpoints)} of ${checkpoints}`, {className: "small"}),
    named("", file(suspect), "", {className: "small file", title: file(suspect)}));
  facts.append(...twins(suspect).map(makeTwin));
  tile.append(picture, facts, makeActions(suspect, tile));
  tile.onmousedown = event => { if (event.shiftKey) event.preventDefault(); };  // selects no text
  tile.onclick = event => {
    if (event.target.closest("button, select")) return;
    if (event.shiftKey) extend(placeOf(stopTile()), placeOf(tile));
    else range = null;
    if (event.ctrlKey || event.metaKey) toggle(suspect);
    tile.focus();
    if (event.target.tagName === "IMG" && !event.shiftKey && !event.ctrlKey && !event.metaKey)
      openDetail(suspect);
  };
  fill(tile, suspect);
  return tile;
}

function makePicture(sample, alt = "") {
  // A PNG has few pixels, which show better than a blur.
  return element("img", "", {src: sample.picture, alt, draggable: false,
    className: sample.picture.startsWith("data:image/png") ? "pixels" : ""});
}

function labelled(before, label, probability, sure = false) {
  const line = element("p", "", {className: before.trim(), title: names[label]});
  line.append(element("span", before), element("bdi", names[label]),
    element("span", percent(probability)));
  if (sure) line.lastChild.before(element("b", "sure", {className: "sure",
    title: "the most frequent label of the strongest images against the given one"}), " ");
  return line;
}

const BUTTONS = {accept: ["Accept", "accept the suggestion (A)"],
                 fine: ["Label OK", "the label is right (F)"],
                 remove: ["Remove", "remove the image (R)"], undo: ["Undo", "undo (U)"]};

// A button to decide; `view`, the tile or the detail view, gets the focus when the button vanishes.
function makeButton(suspect, kind, view) {
  const [text, title] = BUTTONS[kind];
  return element("button", text, {tabIndex: -1, className: kind, title, onclick: () => {
    if (kind === "undo") view.focus();
    decide(affected(suspect), kind);
  }});
}

// The row of buttons and the chooser, which gives the focus back to `view`.
function makeActions(suspect, view) {
  const actions = element("div", "", {className: "actions"});
  const other = element("span", "⋯", {className: "other"});
  for (const kind of differs(suspect) ? ["accept", "fine", "remove"] : ["fine", "remove"])
    actions.append(makeButton(suspect, kind, view));
  other.append(makeChooser(() => chosen(suspect), (value, moves) => decide(affected(suspect),
    value === "" ? "undo" : "relabel", Number(value), moves), () => view.focus()));
  actions.append(other);
  return actions;
}

// A chooser of another class.  `shows` returns the value it shows now; `choose` gets the chosen one, and
// whether to move on; `leave` gives the focus back.
function makeChooser(shows, choose, leave) {
  const select = element("select", "", {tabIndex: -1, ariaLabel: "another class",
    title: "another class (C)"});
  select.onfocus = select.onmousedown = () => addOptions(select);
  // Arrow keys browse the classes; the choice counts with Enter or when the chooser loses focus.
  let browsing = false;
  const settleOn = moves => {
    browsing = false;
    if (select.value !== shows()) choose(select.value, moves);
  };
  select.onkeydown = event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    browsing = !["Tab", "Escape"].includes(event.key);
    if (!["Escape", "Enter"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") select.value = shows();
    else settleOn(true);
    if (document.activeElement === select) leave();
  };
  select.onchange = () => { if (!browsing) settleOn(true); };
  select.onblur = () => settleOn(false);
  select.append(element("option", "another class…", {value: ""}));
  return select;
}

// Options are added on first use, because every tile has a chooser.
function addOptions(select) {
  if (select.options.length === 1)
    select.append(...names.map((name, label) => element("option", name, {value: label})));
}

function file(sample) { return sample.path ?? `image ${sample.index}`; }

// The samples with the same image, or almost, and another label, after what they are.
function twins(suspect) {
  const {twin, near_duplicate_of: near} = suspect, found = twin ? [["same image as ", twin]] : [];
  if (near !== null && near !== twin?.index) found.push(["almost the same image as ", sampleAt(near)]);
  return found;
}

function makeTwin([before, sample]) {
  const line = named(before, file(sample), ", labelled ", {className: "twin"});
  line.append(element("bdi", names[sample.given_label]));
  return line;
}

function differs(suspect) { return suspect.suggested_label !== suspect.given_label; }

// <bdi> keeps an untrusted name that runs from right to left from reordering the words around it.
function named(before, name, after, attributes = {}) {
  const result = element("p", before, attributes);
  result.append(element("bdi", name), after);
  return result;
}

function percent(share) { return Math.round(100 * share) + "\u00a0%"; }
