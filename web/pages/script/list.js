// All queues. Only the rows in view are in the document, so that ten thousand queues cost no more than fifty.

const SPARE = 10;  // rows above and below the view
const FILTERS = {all: () => true, full: (counts) => depth(counts) > 0, dead: (counts) => counts.dead > 0, paused: (counts) => counts.paused};
const rows = new Map();  // queue → its row, while it is in the document
let stats = new Map(), listed = [], filter = "all", order = "queue", descending = false, height = 45;

function newRow(queue) {
  const row = make("tr"), head = make("th"), link = make("a", queue, "cut"), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const marks = make("span", undefined, "marks"), name = make("div", undefined, "name");
  link.href = `#/${encodeURIComponent(queue)}`;
  link.title = queue;
  head.scope = "row";
  name.append(link, marks);
  head.append(name);
  svg.setAttribute("viewBox", "0 0 300 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const cells = [...STATES, "oldest", "sent /s", "read /s", "depth"].map((column) => {
    const cell = make("td", undefined, column.split(" ")[0]);
    cell.dataset.name = column;
    return cell;
  });
  cells[8].append(svg);
  row.append(head, ...cells);
  [row, head, ...cells].forEach((node, place) => node.setAttribute("role", ["row", "rowheader"][place] || "cell"));  // the phone's style is not a table's
  return {row, link, marks, cells, svg};
}

function fillRow(queue, place) {
  if (!rows.has(queue)) rows.set(queue, newRow(queue));
  const {row, marks, cells, svg} = rows.get(queue), counts = stats.get(queue), samples = past.get(queue);
  const speeds = ["sent", "received"].map((name) => speed(samples, name));
  const figures = [...STATES.map((state) => whole(counts[state])), oldestOf(counts), ...speeds.map(rate)];
  figures.forEach((figure, column) => {
    put(cells[column], figure);
    cells[column].classList.toggle("none", figure === "0" || figure === "–");
  });
  const marked = marksOf(counts);
  if (marks.childElementCount !== marked.length || marks.textContent !== marked.map((mark) => mark.textContent).join("")) marks.replaceChildren(...marked);
  row.setAttribute("aria-rowindex", place + 2);
  drawDepth(svg, samples);
  return row;
}

const isWaiting = (counts) => counts.ready > 0 && !counts.paused;
const oldestOf = (counts) => isWaiting(counts) ? age(counts.oldest_age) : "–";
const marksOf = (counts) => [counts.paused && make("span", "paused", "mark paused"), counts.dead > 0 && make("span", "dead letters", "mark dead")].filter(Boolean);

function drawRows() {
  const above = $("above"), below = $("below"), top = above.getBoundingClientRect().top;
  const last = Math.min(listed.length, Math.max(0, Math.ceil((innerHeight - top) / height)) + SPARE);
  const first = Math.max(0, Math.min(last, Math.floor(-top / height) - SPARE));
  const seen = listed.slice(first, last), kept = new Set(seen), focused = document.activeElement;
  for (const [queue, {row}] of rows) if (!kept.has(queue)) { row.remove(); rows.delete(queue); }
  let next = below;
  for (let place = seen.length - 1; place >= 0; place -= 1) {
    const row = fillRow(seen[place], first + place);
    if (row.nextSibling !== next) next.before(row);
    next = row;
  }
  if (focused !== document.activeElement && focused.isConnected) focused.focus({preventScroll: true});  // a moved row loses the focus
  above.style.height = `${first * height}px`;
  below.style.height = `${(listed.length - last) * height}px`;
  const measured = next === below ? height : next.getBoundingClientRect().height;
  if (Math.abs(measured - height) < 0.1) return;
  height = measured;
  drawRows();
}

function valueOf(queue, counts) {
  if (order === "oldest") return isWaiting(counts) ? counts.oldest_age : -1;
  if (order === "sent" || order === "received") return speed(past.get(queue), order) ?? -1;
  return order === "depth" ? depth(counts) : counts[order];
}

// Choose and sort the queues to show. The service lists them by name.
function arrange() {
  const wanted = $("find").value.trim().toLowerCase();
  const chosen = [...stats].filter(([queue, counts]) => FILTERS[filter](counts) && queue.toLowerCase().includes(wanted));
  if (order !== "queue") {
    const values = new Map(chosen.map(([queue, counts]) => [queue, valueOf(queue, counts)])), sign = descending ? -1 : 1;
    chosen.sort(([one], [other]) => sign * (values.get(one) - values.get(other)));
  } else if (descending) chosen.reverse();
  listed = chosen.map(([queue]) => queue);
  $("queues").setAttribute("aria-rowcount", listed.length + 1);
  put($("found"), listed.length === stats.size ? "" : `${whole(listed.length)} of ${counted(stats.size, "queue")}`);
  drawRows();
}

function showTotals() {
  const totals = Object.fromEntries(STATES.map((state) => [state, 0])), found = Object.fromEntries(Object.keys(FILTERS).map((name) => [name, 0]));
  let [oldest, oldestIn] = [-1, ""];
  for (const [queue, counts] of stats) {
    for (const state of STATES) totals[state] += counts[state];
    for (const name of Object.keys(FILTERS)) found[name] += FILTERS[name](counts);
    if (isWaiting(counts) && counts.oldest_age > oldest) [oldest, oldestIn] = [counts.oldest_age, queue];
  }
  showFigures($("totals"), [...STATES.map((state) => [state === "dead" ? "of these, dead letters" : state, whole(totals[state]), state]),
    [oldestIn ? `oldest, in ${oldestIn}` : "oldest", oldestIn ? age(oldest) : "–", "oldest"]]);
  for (const button of $("filters").children) put(button.lastChild, whole(found[button.value]));
}

function showFigures(list, figures) {
  list.replaceChildren(...figures.map(([name, figure, kind]) => {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", figure, figure === "0" || figure === "–" ? "none" : kind));
    return pair;
  }));
}

function showAll() {
  for (const id of ["queues", "totals", "choose"]) $(id).hidden = !stats.size;
  $("empty").hidden = stats.size > 0 || !known;
  showTotals();
  arrange();
}

function sortBy(wanted, down = wanted !== "queue") {
  [order, descending] = [wanted, wanted === order ? !descending : down];
  $("sort").value = order;
  for (const button of document.querySelectorAll("thead button")) {
    const head = button.parentNode;
    if (button.value === order) head.setAttribute("aria-sort", descending ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
  }
  arrange();
}

for (const button of document.querySelectorAll("thead button")) button.onclick = () => sortBy(button.value);
for (const button of $("filters").children) button.onclick = () => {
  filter = button.value;
  for (const one of $("filters").children) one.setAttribute("aria-pressed", one === button);
  arrange();
};
$("sort").onchange = () => sortBy($("sort").value);
$("find").oninput = arrange;
for (const event of ["scroll", "resize"]) addEventListener(event, () => {
  cancelAnimationFrame(drawRows.frame);
  if (!shown) drawRows.frame = requestAnimationFrame(drawRows);
});
