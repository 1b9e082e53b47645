// The detail view: one suspect, large, with all that is known of it.

const detail = byId("detail"), help = byId("help");

function openDetail(suspect) {
  openDialog(detail);
  showDetail(suspect);
}

// A dialog makes all outside it inert, so that the messages and their undo button go with it.
function openDialog(dialog) {
  dialog.append(byId("dock"));
  if (!dialog.open) dialog.showModal();
}

function showDetail(suspect) {
  const view = element("section", "", {tabIndex: -1}), facts = element("div", "", {className: "facts"});
  const picture = element("div", "", {className: "picture"}), place = shown.indexOf(trail[0] ?? suspect);
  view.setAttribute("role", "group");
  view.dataset.index = suspect.index;
  picture.append(makePicture(suspect), element("p", "", {className: "decided"}),
    makeButton(suspect, "undo", view));
  const table = element("dl", "");
  for (const [name, value] of [["rank", `${suspect.rank} of ${samples}`],
    ["score", suspect.score.toPrecision(4)],
    ["disagreed", `${Math.round(suspect.disagreement * checkpoints)} of ${checkpoints} times`]])
    table.append(element("dt", name), element("dd", value));
  facts.append(element("h2", `Suspect ${suspect.rank}`),
    named("", file(suspect), "", {className: "small"}),
    labelledBar("labelled ", suspect.given_label, suspect.given_probability),
    labelledBar("suggested ", suspect.suggested_label, suspect.suggested_probability,
      suspect.sure),
    makeActions(suspect, view), table, ...twins(suspect).map(makeTwin), ...makeReasons(suspect));
  if (suspect.margins.length > 1) facts.append(makeLine(suspect.margins));
  facts.append(element("p", "← → other suspects, A accept, F label OK, "
    + "R remove, C another class, U undo, Esc close", {className: "small keys"}));
  view.append(picture, facts);
  byId("view").replaceChildren(view);
  byId("position").textContent = `${place + 1} of ${shown.length} shown`;
  byId("detailPrevious").disabled = place === 0;
  byId("detailNext").disabled = place === shown.length - 1;
  byId("back").hidden = !trail.length;
  byId("back").textContent = `Back to suspect ${trail.at(-1)?.rank}`;
  for (const one of view.querySelectorAll("button, select")) one.tabIndex = 0;
  fill(view, suspect);
  view.focus({preventScroll: true});
  detail.scrollTop = 0;
}

// The suspect in the detail view, undefined where that is closed.
function viewed() { return byIndex.get(Number(byId("view").firstElementChild?.dataset.index)); }

function labelledBar(before, label, probability, sure) {
  const line = labelled(before, label, probability, sure), bar = element("span", "", {className: "share"});
  bar.style.setProperty("--share", `${100 * probability}%`);
  line.append(bar);
  return line;
}

// The margin over the epochs, as a line over or under zero.
function makeLine(margins) {
  const figure = element("figure", ""), least = Math.min(...margins), most = Math.max(...margins);
  const low = Math.min(0, least), high = Math.max(0, most);
  const y = value => 60 - 60 * (value - low) / (high - low || 1);
  const points = margins.map((value, place) => `${300 * place / (margins.length - 1)},${y(value)}`);
  const told = `margin ${margins[0].toFixed(2)} after the first epoch, `
    + `${margins.at(-1).toFixed(2)} after the last`;
  const drawing = svg("svg", {viewBox: "0 -2 300 64", preserveAspectRatio: "none", role: "img",
    "aria-label": told});
  drawing.append(svg("line", {x1: 0, x2: 300, y1: y(0), y2: y(0)}),
    svg("polyline", {points: points.join(" ")}));
  figure.append(drawing, element("figcaption",
    `${told}: below the dashed line, at 0, the network preferred another class`));
  return figure;
}

function svg(name, attributes) {
  const result = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) result.setAttribute(key, value);
  return result;
}

for (const dialog of [detail, help]) {
  dialog.onclose = () => {
    if (detail.open) return openDialog(detail);  // the help was above it
    document.body.append(byId("dock"));
    // The browser has given the focus to the tile that had it when the dialog was opened.
    const suspect = trail[0] ?? viewed();
    byId("view").replaceChildren();
    goTo(suspect ? shown.indexOf(suspect) : placeOf(stopTile()));
  };
  dialog.onclick = event => { if (event.target === dialog) dialog.close(); };  // the backdrop
  dialog.querySelector(".close").onclick = () => dialog.close();
}
byId("detailPrevious").onclick = () => goTo(placeOf(stopTile()) - 1);
byId("detailNext").onclick = () => goTo(placeOf(stopTile()) + 1);
byId("helpButton").onclick = () => openDialog(help);
