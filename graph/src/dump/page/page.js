"use strict";
(() => {
  const dump = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const byId = (list) => new Map(list.map((x) => [x.id, x]));
  const nodes = byId(dump.nodes), values = byId(dump.values), weights = byId(dump.weights), launches = byId(dump.launches);
  const profiled = dump.profiled_steps !== null;
  const plan = dump.level === "plan";

  // Names from the file are set as text, never as markup.
  const el = (tag, cls, ...children) => {
    const e = document.createElement(tag);
    if (cls) e.className = cls;
    for (const c of children) if (c !== null && c !== undefined) e.append(c);
    return e;
  };

  // ---- Quantities ----
  const scaled = (x, units) => {
    let u = 0;
    while (x >= 999.5 && u + 1 < units.length) { x /= 1000; u++; }
    return `${u === 0 ? x.toFixed(0) : x >= 99.95 ? x.toFixed(0) : x >= 9.995 ? x.toFixed(1) : x.toFixed(2)} ${units[u]}`;
  };
  const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB"]);
  const flops = (n) => scaled(n, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"]);
  const rate = (n) => scaled(n, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"]);
  const seconds = (s) => s >= 1 ? `${s.toFixed(2)} s` : scaled(s * 1e9, ["ns", "µs", "ms", "s"]);
  const percent = (x) => `${(100 * x).toFixed(1)} %`;
  const shape = (dims) => dims.length ? dims.join(" × ") : "scalar";

  const FAMILIES = [["expert", /expert|gate|moe|down|swiglu/], ["matmul", /matmul|proj|lm_head|qkv/], ["attention", /attention|rope|kv/], ["router", /route|top_?k/], ["norm", /norm/]];
  const familyOf = (kind) => (FAMILIES.find(([, re]) => re.test(kind)) || ["other"])[0];
  const FORMULAS = {
    embed: "rows of the table by token id", rms_norm: "x / √(mean(x²) + eps) · w, over the last axis or each head",
    matmul: "x · Wᵀ", rope: "each pair (a, b) turned by its position's angle", kv_write: "k and v into the cache, rounded to its type",
    attention: "softmax(scale · q·kᵀ) · v, causal", attention_scores: "scale · q·kᵀ, 0 after the query", attention_softmax: "softmax over the visible positions",
    router: "the best K of the gated logits, and their weights", expert_matmul: "x · Wᵀ of each chosen expert",
    gated_act: "act(gate), and act(gate) · up", expert_combine: "Σ weight · y over the chosen experts", add: "a + b", mul: "a · b",
    get_rows: "the rows whose logits are asked for",
  };

  // ---- Head ----
  $("model").textContent = dump.model.name || dump.model.architecture;
  const where = dump.backend ? ` for ${dump.backend.name}${dump.backend.device ? ` on ${dump.backend.device}` : ""}, activations ${dump.backend.activations}` : "";
  $("about").textContent = `${dump.model.architecture} · ${dump.model.num_hidden_layers} layers · hidden_size ${dump.model.hidden_size} · level ${dump.level}${where} · ${dump.generator}`;
  const cost = dump.totals.cost;
  const fact = (name, value, note) => $("facts").append(el("div", "", el("dt", "", name), el("dd", "", value, note ? el("small", "", ` ${note}`) : null)));
  fact("Weights", bytes(dump.model.weight_bytes));
  fact("Read in a step", bytes(cost.total_bytes - cost.written_bytes), `T ${dump.step.tokens}, S ${dump.step.cached}, ${dump.step.kv_type} cache`);
  fact("Written", bytes(cost.written_bytes));
  fact("Products", flops(cost.flops));
  fact("Nodes", String(dump.totals.nodes), dump.totals.launches ? `in ${dump.totals.launches} launches` : `and ${dump.totals.taps} taps`);
  if (dump.memory) fact("Arena", bytes(dump.memory.arena_bytes), `apart: ${bytes(dump.memory.naive_bytes)}`);
  if (cost.roofline_seconds !== null) fact("At best", seconds(cost.roofline_seconds), `at ${rate(dump.bandwidth_bytes_per_s)}`);
  const measured = dump.totals.measured;
  if (measured) fact("Measured", seconds(measured.seconds), measured.roofline_share === null ? `${rate(measured.bandwidth_bytes_per_s)}` : `${percent(measured.roofline_share)} of the best`);

  const strip = el("div", "strip"), legend = el("div", "legend");
  const partOf = (kind) => kind.measured ? kind.measured.share : kind.cost.total_bytes / Math.max(1, cost.total_bytes);
  for (const kind of dump.kinds) {
    const part = partOf(kind);
    const bar = el("i", `k-${familyOf(kind.kind)}`);
    bar.style.flexGrow = part;
    bar.title = `${kind.kind}: ${percent(part)}`;
    strip.append(bar);
    if (part >= 0.0005) legend.append(el("span", `k-${familyOf(kind.kind)}`, el("i"), el("b", "", kind.kind), ` ${percent(part)}${kind.measured ? ` · ${rate(kind.measured.bandwidth_bytes_per_s)}` : ""}`));
  }
  $("shares").append(strip, legend);

  // ---- Rows ----
  const rowOf = new Map(); // node id → row element
  const tapsOf = new Map();
  for (const tap of dump.taps) if (tap.node !== null) tapsOf.set(tap.node, [...(tapsOf.get(tap.node) || []), tap]);
  const dearest = Math.max(1, ...dump.nodes.map((n) => n.cost.total_bytes));
  const slowest = profiled ? Math.max(1e-12, ...dump.launches.map((l) => l.measured.seconds)) : 1;

  // Bytes of nodes span six orders of magnitude: the bar is their square root.
  const number = (text, part, heated) => {
    const cell = el("span", "num", text);
    if (part > 0) { const bar = el("i"); bar.style.width = `${100 * Math.sqrt(part)}%`; cell.append(bar); }
    if (heated !== undefined) { cell.classList.add("hot"); cell.style.setProperty("--heated", heated.toFixed(3)); }
    return cell;
  };
  const timeCell = (launch) => launch && launch.measured ? number(seconds(launch.measured.seconds), 0, launch.measured.seconds / slowest) : el("span");

  const nodeRow = (node, launch, alone) => {
    const row = el("div", `row k-${familyOf(node.op)}${node.production ? "" : " recomputed"}`);
    row.tabIndex = 0;
    row.dataset.path = node.path;
    const name = el("span", "name", node.name, node.name === node.op ? null : el("em", "", node.production ? node.op : "recomputed"));
    for (const tap of tapsOf.get(node.id) || []) if (tap.kept) { const pill = el("span", "pill", tap.stage); pill.dataset.path = tap.path; name.append(pill); }
    const weight = el("span", "weight");
    node.weights.forEach((id, i) => { const w = weights.get(id); weight.append(i ? " + " : "", el("b", "", w.format), ` ${shape(w.shape)}`); });
    const out = values.get(node.outputs[0]);
    row.append(el("span"), name, weight, el("span", "shape", out ? shape(out.shape) : ""));
    row.append(number(bytes(node.cost.total_bytes), node.cost.total_bytes / dearest), alone ? timeCell(launch) : el("span"));
    row.addEventListener("click", () => select(node.path));
    row.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); select(node.path); } });
    row.addEventListener("mouseenter", () => { if (!pinned) showNode(node); });
    rowOf.set(node.id, row);
    return row;
  };

  const launchRow = (launch) => {
    const row = el("div", "row head");
    row.tabIndex = 0;
    row.dataset.path = `launch ${launch.id}`;
    const label = el("span", "name", `${launch.id} · ${launch.kind}`);
    row.append(el("span"), label, el("span", "weight", launch.kernel ? launch.kernel.name : ""), el("span", "shape", launch.phases.length > 1 ? `${launch.phases.length} phases` : ""));
    row.append(number(bytes(launch.cost.total_bytes), 0), timeCell(launch));
    const show = () => select(`launch ${launch.id}`);
    row.addEventListener("click", show);
    row.addEventListener("keydown", (e) => { if (e.key === "Enter") show(); });
    row.addEventListener("mouseenter", () => { if (!pinned) showLaunch(launch); });
    return row;
  };

  // Lanes as in a commit graph: a node's line runs from its dot to its last reader; lane 0 is the residual stream.
  const STEP = 13, DOT = 3.5;
  const lanes = (list, offsets) => {
    const at = new Map(list.map((n, i) => [n.id, i]));
    const lastUse = new Map(), entering = [];
    list.forEach((node, i) => {
      for (const v of node.inputs) {
        const value = values.get(v);
        if (value.producer === null) continue;
        if (!at.has(value.producer) && !entering.includes(value.producer)) entering.push(value.producer);
        lastUse.set(value.producer, i);
      }
    });
    const made = new Set(list.flatMap((n) => n.outputs));
    for (const other of dump.nodes) if (!at.has(other.id)) for (const v of other.inputs) if (made.has(v)) lastUse.set(values.get(v).producer, list.length);
    const lane = new Map(), busy = [];
    const take = (id) => { let l = busy.findIndex((b) => b === null); if (l < 0) { l = busy.length; busy.push(null); } busy[l] = id; lane.set(id, l); };
    entering.forEach(take);
    list.forEach((node, i) => {
      busy.forEach((id, l) => { if (id !== null && (lastUse.get(id) ?? -1) <= i) busy[l] = null; });
      take(node.id);
      if (!lastUse.has(node.id)) busy[lane.get(node.id)] = null;
    });
    return { at, lane, entering, lastUse, width: Math.max(1, ...lane.values(), 0) + 1, offsets };
  };

  const drawLanes = (list, layout, height) => {
    const NS = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(NS, "svg");
    const { at, lane, offsets } = layout;
    svg.setAttribute("width", layout.width * STEP + 10);
    svg.setAttribute("height", height);
    svg.setAttribute("aria-hidden", "true");
    const x = (id) => 8 + lane.get(id) * STEP;
    const add = (tag, attributes) => { const e = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); svg.append(e); return e; };
    const line = (from, x0, y0, x1, y1, dashed) => {
      const lx = x(from), up = 11, down = 11;
      let d = `M${x0} ${y0}`;
      if (x0 !== lx) d += ` C${x0} ${y0 + up} ${lx} ${y0 + 3} ${lx} ${y0 + up + 3}`;
      if (x1 !== lx) d += ` L${lx} ${Math.max(y0, y1 - down - 3)} C${lx} ${y1 - 3} ${x1} ${y1 - down} ${x1} ${y1}`;
      else d += ` L${x1} ${y1}`;
      add("path", { d, fill: "none", stroke: lane.get(from) === 0 ? "var(--accent)" : "var(--mute)", "stroke-width": lane.get(from) === 0 ? 2 : 1.2, "stroke-opacity": lane.get(from) === 0 ? 0.75 : 0.6, ...(dashed ? { "stroke-dasharray": "3 3" } : {}) });
    };
    list.forEach((node, i) => {
      const seen = new Set();
      for (const v of node.inputs) {
        const value = values.get(v);
        if (value.producer === null || seen.has(value.producer)) continue;
        seen.add(value.producer);
        const from = at.has(value.producer) ? offsets[at.get(value.producer)] : -4;
        line(value.producer, x(value.producer), from, x(node.id), offsets[i], value.state !== null);
      }
    });
    list.forEach((node) => { if (layout.lastUse.get(node.id) === list.length) line(node.id, x(node.id), offsets[at.get(node.id)], x(node.id), height, false); });
    list.forEach((node, i) => {
      const dot = add("circle", { cx: x(node.id), cy: offsets[i], r: DOT, stroke: "var(--card)", "stroke-width": 1.5 });
      dot.style.fill = `var(--${familyOf(node.op)})`;
    });
    return svg;
  };

  const fillRows = (list) => {
    const box = el("div", "rows"), offsets = [];
    let y = 0, last = null;
    for (const node of list) {
      const launch = node.launch === null ? null : launches.get(node.launch);
      const size = launch ? launch.phases.flat().length : 1;
      const alone = size === 1;
      if (launch && !alone && launch.id !== last) { box.append(launchRow(launch)); y += 26; }
      last = launch ? launch.id : null;
      box.append(nodeRow(node, launch, alone));
      offsets.push(y + 14);
      y += 28;
    }
    const layout = lanes(list, offsets);
    box.style.setProperty("--lanes", `${layout.width * STEP + 16}px`);
    if (profiled) box.style.setProperty("--time", "74px");
    box.append(drawLanes(list, layout, y + 6));
    return box;
  };

  // ---- Sections: the whole model's nodes, and groups of layers as tiles that unfold ----
  const layerCost = (layer) => (dump.launches.length ? dump.launches : dump.nodes).filter((x) => x.layer === layer).reduce((sum, x) => sum + x.cost.total_bytes, 0);
  const layerTime = (layer) => dump.launches.filter((l) => l.layer === layer).reduce((sum, l) => sum + l.measured.seconds, 0);
  const tiles = new Map(), opened = new Map();

  const groupCard = (group) => {
    const card = el("section", "card"), grid = el("div", "tiles"), home = el("div");
    const n = group.layers.length;
    const title = n === 1 ? `Layer ${group.layers[0]}` : `${n} layers of one structure`;
    const note = Object.keys(group.formats).length ? `formats differ in ${Object.keys(group.formats).join(", ")}` : "the same formats";
    card.append(el("h2", "", title, el("span", "", n === 1 ? "" : note), el("span", "end", `${bytes(group.cost.total_bytes)}${group.measured ? ` · ${seconds(group.measured.seconds)}` : ""}`)), grid);
    const most = Math.max(...group.layers.map(layerCost));
    const slow = profiled ? Math.max(...group.layers.map(layerTime)) : 0;
    for (const layer of group.layers) {
      const formats = new Set();
      for (const by of Object.values(group.formats)) for (const [format, layers] of Object.entries(by)) if (layers.includes(layer)) formats.add(format);
      const tile = el("button", "tile", el("b", "", String(layer)), el("small", "", [...formats].join(" ")));
      tile.type = "button";
      tile.dataset.layer = layer;
      tile.setAttribute("aria-expanded", "false");
      tile.setAttribute("aria-label", `Layer ${layer}`);
      tile.style.setProperty("--part", layerCost(layer) / most);
      tile.title = `layer-${layer}: ${bytes(layerCost(layer))}${profiled ? `, ${seconds(layerTime(layer))}` : ""}`;
      if (profiled) { tile.classList.add("hot"); tile.style.setProperty("--heated", (layerTime(layer) / slow).toFixed(3)); }
      tile.addEventListener("click", () => toggle(layer));
      grid.append(tile);
      tiles.set(layer, { tile, home });
    }
    return [card, home];
  };

  const unfold = (layer) => {
    if (opened.has(layer)) return opened.get(layer);
    const { tile, home } = tiles.get(layer);
    const list = dump.nodes.filter((n) => n.layer === layer);
    const count = dump.launches.filter((l) => l.layer === layer).length;
    const close = el("button", "", `Layer ${layer}`, el("span", "", count ? `${list.length} nodes in ${count} launches` : `${list.length} nodes`), el("span", "end", bytes(layerCost(layer))));
    close.type = "button";
    close.setAttribute("aria-label", `Fold layer ${layer}`);
    close.addEventListener("click", () => toggle(layer));
    const card = el("section", "card layer", el("h2", "", close), fillRows(list));
    card.dataset.layer = layer;
    const next = [...home.children].find((c) => Number(c.dataset.layer) > layer);
    home.insertBefore(card, next || null);
    opened.set(layer, card);
    tile.setAttribute("aria-expanded", "true");
    return card;
  };
  const fold = (layer) => {
    const card = opened.get(layer);
    if (!card) return;
    for (const node of dump.nodes) if (node.layer === layer) rowOf.delete(node.id);
    card.remove();
    opened.delete(layer);
    tiles.get(layer).tile.setAttribute("aria-expanded", "false");
  };
  const toggle = (layer) => opened.has(layer) ? fold(layer) : unfold(layer);

  let run = [];
  const flush = () => { if (run.length) { $("graph").append(el("section", "card", fillRows(run))); run = []; } };
  for (const node of dump.nodes) {
    if (node.layer === null) { run.push(node); continue; }
    flush();
    const group = dump.layer_groups.find((g) => g.nodes[0] === node.id);
    if (group) $("graph").append(...groupCard(group));
  }
  flush();

  // ---- Details ----
  let pinned = null;
  const list = (title, items) => items.length ? [el("h3", "", title), el("ul", "", ...items)] : [];
  const item = (left, right) => el("li", "", typeof left === "string" ? el("span", "", left) : left, el("span", "", right));
  const link = (path, text) => { const a = el("a", "", text || path); a.addEventListener("click", () => select(path)); return a; };
  const costItems = (c, m) => [
    item("read", bytes(c.total_bytes - c.written_bytes)), c.weight_bytes ? item("of it weights", bytes(c.weight_bytes)) : null,
    item("written", bytes(c.written_bytes)), c.flops ? item("products", flops(c.flops)) : null,
    c.roofline_seconds !== null ? item("at best", seconds(c.roofline_seconds)) : null,
    m ? item("measured", seconds(m.seconds)) : null, m ? item("of the step", percent(m.share)) : null,
    m ? item("rate", rate(m.bandwidth_bytes_per_s)) : null, m && m.roofline_share !== null ? item("of the best", percent(m.roofline_share)) : null,
  ].filter(Boolean);
  const valueItem = (id) => {
    const v = values.get(id);
    const maker = v.producer !== null && nodes.get(v.producer);
    const place = v.buffer ? ` @${v.buffer.offset_bytes}` : "";
    return item(maker ? link(maker.path, v.name) : v.name, `${shape(v.shape)} ${v.dtype}${place}`);
  };
  const detail = (...parts) => $("detail").replaceChildren(...parts.filter(Boolean));

  const showNode = (node, tap) => {
    const launch = node.launch === null ? null : launches.get(node.launch);
    const readers = dump.nodes.filter((n) => n.inputs.some((v) => node.outputs.includes(v)));
    const alone = launch && launch.phases.flat().length === 1;
    detail(
      el("h2", "", tap ? tap.path : node.path),
      tap ? el("p", "formula", tap.kept ? `A tap on ${node.path}${tap.production ? "" : ", recomputed"}.` : `A tap on ${node.path}; it was not asked for, so the plan has dropped it.`) : null,
      el("p", "formula", `${node.op}: ${FORMULAS[node.op] || ""}${node.production ? "" : " (recomputed: it feeds taps only)"}`),
      ...list("Attributes", Object.entries(node.attributes).map(([k, v]) => item(k, String(v)))),
      ...list("Weights", node.weights.map((id) => { const w = weights.get(id); return item(w.name, `${w.format} ${shape(w.shape)} ${bytes(w.size_bytes)}`); })),
      ...list("Reads", node.inputs.map(valueItem)),
      ...list("Makes", node.outputs.map(valueItem)),
      ...list("Read by", readers.map((n) => item(link(n.path), n.op))),
      ...list("Taps", (tapsOf.get(node.id) || []).map((t) => item(link(t.path), t.kept ? (t.production ? "production" : "recomputed") : "dropped"))),
      ...list(alone || !launch ? "Cost" : "Cost by itself", costItems(node.cost, alone ? launch.measured : null)),
      ...(launch ? list("Launch", [item(link(`launch ${launch.id}`), launch.kind)]) : []),
    );
  };

  const showLaunch = (launch) => detail(
    el("h2", "", `launch ${launch.id}`),
    el("p", "formula", `${launch.kind}${launch.recomputed ? " (recomputed: it feeds taps only)" : ""}`),
    ...(launch.kernel ? list("Kernel", [item("name", launch.kernel.name), launch.kernel.grid ? item("grid", launch.kernel.grid.join(" × ")) : null, launch.kernel.workgroup ? item("workgroup", launch.kernel.workgroup.join(" × ")) : null].filter(Boolean)) : []),
    ...launch.phases.flatMap((phase, i) => list(launch.phases.length > 1 ? `Phase ${i}` : "Nodes", phase.map((id) => item(link(nodes.get(id).path), nodes.get(id).op)))),
    ...list("Reads", launch.reads.map(valueItem)),
    ...list(plan ? "Stores" : "Leaves", launch.writes.map(valueItem)),
    ...list("Taps", launch.taps.map((path) => item(link(path), ""))),
    ...list("Cost", costItems(launch.cost, launch.measured)),
  );

  const hint = () => detail(el("p", "hint", "Point at a node for its shapes, formats, bytes and launch; click to keep it here. A layer's tile unfolds it. Press / to find a node or a tap."));

  const paths = new Map();
  for (const node of dump.nodes) paths.set(node.path, { node, kind: node.op });
  // attention and q_norm are both a node and its tap: the tap leads to the node, whose details list it.
  for (const tap of dump.taps) if (!paths.has(tap.path)) paths.set(tap.path, { tap, node: nodes.get(tap.node), kind: tap.kept ? "tap" : "tap, dropped" });
  for (const launch of dump.launches) paths.set(`launch ${launch.id}`, { launch, node: nodes.get(launch.phases.flat()[0]), kind: launch.kind });

  // Unfolds what holds a path, scrolls to it, marks it and shows its details.
  const select = (path) => {
    const target = paths.get(path);
    if (!target) return false;
    const layer = target.node ? target.node.layer : target.tap ? target.tap.layer : null;
    if (layer !== null && tiles.has(layer)) unfold(layer);
    document.querySelectorAll(".on, .near").forEach((e) => e.classList.remove("on", "near"));
    pinned = path;
    history.replaceState(null, "", `#${encodeURIComponent(path)}`);
    if (target.node) {
      const row = rowOf.get(target.node.id);
      const marked = target.launch ? document.querySelector(`.row[data-path="launch ${target.launch.id}"]`) || row : row;
      marked.classList.add("on");
      if (target.tap) row.querySelectorAll(".pill").forEach((p) => p.classList.toggle("on", p.dataset.path === path));
      if (!target.launch) for (const v of target.node.inputs) { const from = rowOf.get(values.get(v).producer); if (from) from.classList.add("near"); }
      const box = marked.getBoundingClientRect();
      if (box.top < 90 || box.bottom > innerHeight - 20) scrollTo({ top: scrollY + box.top - innerHeight / 3 });
    }
    if (target.launch) showLaunch(target.launch);
    else if (target.node) showNode(target.node, target.tap);
    else detail(el("h2", "", path), el("p", "formula", "This stage was not asked for, and what computes it feeds nothing else: the plan has dropped both."));
    return true;
  };

  // ---- Search ----
  const search = $("search"), hits = $("hits");
  let found = [], at = 0;
  const mark = () => [...hits.children].forEach((li, i) => { li.setAttribute("aria-selected", String(i === at && found.length > 0)); if (i === at && found.length) li.scrollIntoView({ block: "nearest" }); });
  const close = () => { hits.hidden = true; search.setAttribute("aria-expanded", "false"); };
  const go = (i) => { if (!found[i]) return; search.value = found[i]; close(); search.blur(); select(found[i]); };
  const find = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return close();
    const all = [...paths.keys()].filter((p) => words.every((w) => p.toLowerCase().includes(w)));
    const rank = (p) => p.toLowerCase() === words.join(" ") ? 0 : p.toLowerCase().startsWith(words[0]) ? 1 : 2;
    found = all.map((p, i) => [rank(p), i, p]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, 60).map((x) => x[2]);
    at = 0;
    hits.replaceChildren(...(found.length ? found.map((path, i) => {
      const li = el("li", "", el("span", "mono", path), el("span", "", paths.get(path).kind));
      li.setAttribute("role", "option");
      li.dataset.path = path;
      li.addEventListener("mousedown", (e) => { e.preventDefault(); go(i); });
      return li;
    }) : [el("li", "none", "Nothing of that name in this dump")]));
    hits.hidden = false;
    search.setAttribute("aria-expanded", "true");
    mark();
  };
  search.addEventListener("input", find);
  search.addEventListener("focus", find);
  search.addEventListener("blur", close);
  search.addEventListener("keydown", (e) => {
    if (e.key === "ArrowDown") { at = Math.min(at + 1, found.length - 1); mark(); e.preventDefault(); }
    if (e.key === "ArrowUp") { at = Math.max(at - 1, 0); mark(); e.preventDefault(); }
    if (e.key === "Enter") { find(); go(at); }
    if (e.key === "Escape") { search.value = ""; close(); search.blur(); }
  });
  document.addEventListener("keydown", (e) => {
    if (e.key === "/" && document.activeElement !== search) { e.preventDefault(); search.focus(); search.select(); }
    if (e.key === "Escape" && document.activeElement === document.body) { pinned = null; document.querySelectorAll(".on, .near").forEach((x) => x.classList.remove("on", "near")); hint(); }
  });

  $("unfold").addEventListener("click", () => { for (const layer of tiles.keys()) unfold(layer); });
  $("fold").addEventListener("click", () => { for (const layer of [...opened.keys()]) fold(layer); });

  // ---- Light and dark: the system's, until the button says otherwise ----
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const paint = () => { document.documentElement.dataset.theme = chosen ?? (dark.matches ? "dark" : "light"); };
  dark.addEventListener("change", paint);
  $("theme").addEventListener("click", () => { chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; paint(); });
  paint();

  hint();
  if (location.hash.length > 1) { try { select(decodeURIComponent(location.hash.slice(1))); } catch { /* not a name that was encoded here */ } }
})();
