// The tiles: one suspect each, with what is known of it and the buttons to decide.

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

// The value that the chooser of a tile shows.
function chosen(suspect) {
  const row = current(suspect);
  // A tile whose label is right shows the given class, so that a choice of another one is a change.
  if (!row || row.decision === "remove") return "";
  return String(names.indexOf(row.new_label || names[suspect.given_label]));
}

function fill(tile, suspect) {
  const row = current(suspect), select = tile.querySelector("select");
  tile.dataset.decision = row ? row.decision : "";
  tile.querySelector(".decided").textContent = describe(suspect);
  tile.querySelector(".undo").disabled = !row;
  if (chosen(suspect) !== "") addOptions(select);
  select.value = chosen(suspect);
  tile.setAttribute("aria-label", `Suspect ${suspect.rank}: labelled ${names[suspect.given_label]}, `
    + `suggested ${names[suspect.suggested_label]}, ${suspect.twin ? `${twinText(suspect)}, ` : ""}`
    + describe(suspect));
}

function makeTile(suspect) {
  const tile = element("article", "", {tabIndex: -1, role: "group"});
  tile.dataset.index = suspect.index;
  tile.append(element("img", "", {src: "data:image/png;base64," + suspect.image, alt: ""}),
    named("labelled ", names[suspect.given_label], `, ${percent(suspect.given_probability)}`),
    named("suggested ", names[suspect.suggested_label], `, ${percent(suspect.suggested_probability)}`),
    element("p", `disagreed ${Math.round(suspect.disagreement * checkpoints)} of ${checkpoints} times`,
      {className: "small"}),
    element("p", `#${suspect.rank}, score ${suspect.score.toPrecision(4)}`, {className: "small"}),
    named("", file(suspect), "", {className: "small"}));
  if (suspect.twin) {
    const line = named("same image as ", file(suspect.twin), ", labelled ", {className: "twin"});
    line.append(element("bdi", names[suspect.twin.given_label]));
    tile.append(line);
  }
  tile.append(element("p", "", {className: "decided"}));
  for (const kind of ["accept", "fine", "remove", "undo"])
    if (kind !== "accept" || differs(suspect))
      tile.append(element("button", kind === "fine" ? "label is right" : kind, {
        tabIndex: -1, className: kind, onclick: () => {
          decide(suspect, kind);
          if (kind === "undo") tile.focus();
        }}), " ");
  const select = element("select", "", {tabIndex: -1, ariaLabel: "another class",
    onfocus: () => addOptions(select), onmousedown: () => addOptions(select)});
  // Arrow keys browse the classes; the choice counts when the chooser loses focus.
  let browsing = false;
  const choose = () => {
    browsing = false;
    if (select.value !== chosen(suspect))
      decide(suspect, select.value === "" ? "undo" : "relabel", Number(select.value));
  };
  select.onkeydown = event => { browsing = !["Tab", "Escape"].includes(event.key); };
  select.onchange = () => { if (!browsing) choose(); };
  select.onblur = choose;
  select.append(element("option", "another class…", {value: ""}));
  tile.append(select);
  fill(tile, suspect);
  return tile;
}

function file(sample) { return sample.path ?? `image ${sample.index}`; }

function twinText(suspect) {
  return `same image as ${file(suspect.twin)}, labelled ${names[suspect.twin.given_label]}`;
}

function differs(suspect) { return suspect.suggested_label !== suspect.given_label; }

// <bdi> keeps an untrusted name that runs from right to left from reordering the words around it.
function named(before, name, after, attributes = {}) {
  const result = element("p", before, attributes);
  result.append(element("bdi", name), after);
  return result;
}

// Options are added on first use, because every tile has a chooser.
function addOptions(select) {
  if (select.options.length === 1)
    select.append(...names.map((name, label) => element("option", name, {value: label})));
}

function percent(share) { return Math.round(100 * share) + "\u00a0%"; }

function decide(suspect, kind, label) {
  if (kind === "accept" && !differs(suspect))
    return say(`Suspect ${suspect.rank}: the suggestion is its label; if that is right, press F`);
  if (kind === "accept") [kind, label] = ["relabel", suspect.suggested_label];
  if (kind === "relabel" && label === suspect.given_label) kind = "fine";
  const kept = keep(suspect.index, kind === "undo" ? null : makeRow(suspect, kind, label));
  say(`Suspect ${suspect.rank}: ${describe(suspect)}${kept ? "" : UNKEPT}`);
  fill(main.querySelector(`[data-index="${suspect.index}"]`), suspect);
  count();
}
