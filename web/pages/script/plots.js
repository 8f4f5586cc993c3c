// Plots of the last minutes.

const KEPT = 150, MOST_KEPT = 200000;  // samples: of one queue, and of all
const past = new Map();  // queue → samples of it, oldest first

function sample(queue, {sent, received, ...counts}) {
  const samples = past.get(queue) || [], kept = Math.max(7, Math.min(KEPT, MOST_KEPT / past.size));
  samples.push({time: performance.now(), sent, received, depth: depth(counts)});
  while (samples.length > kept) samples.shift();
  past.set(queue, samples);
}

// A rate over the last 10 s or so: over a single poll it would flicker.
function speed(samples, name, end = samples.length - 1) {
  const last = samples[end], first = samples[Math.max(0, end - 5)];
  return last && last.time > first.time ? Math.max(0, last[name] - first[name]) * 1000 / (last.time - first.time) : null;
}

function line(values, most) {
  const step = 300 / Math.max(values.length - 1, 15), start = 300 - step * (values.length - 1);
  return values.map((value, place) => `${place ? "L" : "M"}${(start + place * step).toFixed(1)} ${(98 - 96 * value / most).toFixed(1)}`).join("");
}

function draw(svg, series, label) {
  const most = Math.max(1, ...series.flatMap((one) => one.values));
  const paths = series.flatMap(({values, name}) => {
    if (values.length < 2) return [];
    const drawn = line(values, most), start = drawn.slice(1).split(" ")[0];
    return series.length === 1 ? [[`${drawn}L300 100L${start} 100Z`, "under"], [drawn, ""]] : [[drawn, name]];
  });
  while (svg.childElementCount > paths.length) svg.lastChild.remove();
  paths.forEach(([d, name], place) => {
    const path = svg.children[place] || svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
    path.setAttribute("d", d);
    path.setAttribute("class", name);
  });
  svg.setAttribute("aria-label", label(most));
  return most;
}

const drawDepth = (svg, samples) => draw(svg, [{values: samples.map((one) => one.depth)}], (most) => `Messages in the queue over the last minutes, at most ${whole(most)}`);
