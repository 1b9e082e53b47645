// The suspects counted by given and suggested label, where a click shows those of one pair.

const PAIR_CLASSES = 25;  // rows and columns, at most

function updatePairs() {
  const panel = byId("pairs");
  if (!panel.open) return;
  const kept = suspects.filter(FILTERS[byId("show").value]);
  const counts = new Map(), rows = new Map(), columns = new Map();
  for (const {given_label: given, suggested_label: suggested} of kept)
    for (const [map, key] of [[counts, `${given} ${suggested}`], [rows, given], [columns, suggested]])
      map.set(key, (map.get(key) ?? 0) + 1);
  // Of many classes, those with the most suspects, in the order of the classes.
  const largest = map => [...map].sort((a, b) => b[1] - a[1]).slice(0, PAIR_CLASSES)
    .map(([label]) => label).sort((a, b) => a - b);
  const across = largest(columns), most = Math.max(1, ...[...counts].filter(([pair]) => {
    const [given, suggested] = pair.split(" ");
    return given !== suggested;
  }).map(([, number]) => number));
  const table = element("table", ""), head = element("tr", "");
  head.append(element("td", "labelled ↓  suggested →"), ...across.map(label => heading(label, "col")));
  table.append(head, ...largest(rows).map(given => {
    const row = element("tr", "");
    row.append(heading(given, "row"), ...across.map(suggested =>
      pairCell(given, suggested, counts.get(`${given} ${suggested}`), most)));
    return row;
  }));
  const pair = document.activeElement.dataset.pair;  // which keeps the focus
  byId("table").replaceChildren(table);
  if (pair) byId("table").querySelector(`[data-pair="${pair}"]`)?.focus({preventScroll: true});
  byId("more").hidden = Math.max(rows.size, columns.size) <= PAIR_CLASSES;
  markWider();
}

// Whether there are more columns to the right shows in words and as an edge that fades.
function markWider() {
  const table = byId("table");
  const wider = table.scrollWidth - table.clientWidth - table.scrollLeft > 1;
  table.classList.toggle("wider", wider);
  byId("wider").hidden = !wider;
}

function heading(label, scope) {
  const cell = element("th", "", {scope, title: names[label]});
  cell.append(element("bdi", names[label]));
  return cell;
}

function pairCell(given, suggested, number, most) {
  const cell = element("td", "");
  if (!number) return cell;
  const chosenPair = byId("class").value === String(given)
    && byId("suggested").value === String(suggested);
  const button = element("button", number, {ariaPressed: String(chosenPair),
    ariaLabel: `${number} labelled ${names[given]}, suggested ${names[suggested]}`,
    onclick: () => filterPair(chosenPair ? "" : given, chosenPair ? "" : suggested)});
  if (given !== suggested) button.style.setProperty("--share", `${Math.round(55 * number / most)}%`);
  button.dataset.pair = `${given} ${suggested}`;
  cell.append(button);
  return cell;
}

function filterPair(given, suggested) {
  byId("class").value = given;
  byId("suggested").value = suggested;
  refilter();
  byId("table").querySelector(`[data-pair="${given} ${suggested}"]`)?.focus();
}

byId("pairs").ontoggle = updatePairs;
byId("table").onscroll = markWider;
byId("allPairs").onclick = () => { filterPair("", ""); focusStop(); };
