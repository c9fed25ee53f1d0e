// Draws what a run adds to its lines over the picture that ECharts has drawn, segment by segment.
// ECharts draws all points of a chart again for each one that is new, which takes a hundred times as
// long. So it draws with room for the points of some seconds, and again when the room is used up.
window.lorakitTail = (() => {
  const MOST_ROOM = 1 / 3; // of what is drawn, but for
  const [LEAST_MS, MOST_MS] = [15000, 120000]; // between two pictures by ECharts while points come
  const SETTLES_MS = 30000; // after which no more points are expected
  const [FIRST_PACE_MS, PACE_MS] = [500, 2000];
  const SYMBOL = 4; // pixels from the centre of a point to its edge

  // Note how far the lines reach, from which follows how fast they grow.
  function note(component, end) {
    if (!Number.isFinite(end)) return;
    const now = performance.now();
    const before = (component.lorakitPace ??= { ms: now, end, perMs: 0 });
    const passed = now - before.ms;
    if (passed < (before.perMs ? PACE_MS : FIRST_PACE_MS)) return;
    component.lorakitPace = { ms: now, end, perMs: Math.max(0, (end - before.end) / passed) };
  }

  // The end of the horizontal axis of the next picture; undefined is the last point.
  function limit(component, start, end) {
    const drawn = component.lorakitPicture?.limit;
    if (component.lorakitZoom) return drawn >= end ? drawn : undefined;
    const perMs = component.lorakitPace?.perMs ?? 0;
    if (!perMs || !Number.isFinite(end)) return undefined;
    const room = Math.min(Math.max(MOST_ROOM * (end - start), LEAST_MS * perMs), MOST_MS * perMs);
    return end - start > 20 ? Math.ceil(end + room) : end + room;
  }

  // Remember what ECharts has drawn; `looks` has colour, dash, width, density and end by line.
  function begin(component, limit, looks) {
    component.lorakitPicture = { untilMs: performance.now() + MOST_MS, limit, looks };
    const canvas = component.lorakitCanvas;
    if (component.lorakitHasTail) {
      const context = canvas.getContext("2d");
      context.resetTransform();
      context.clearRect(0, 0, canvas.width, canvas.height);
    }
    component.lorakitHasTail = false;
  }

  // The canvas over what is right of a place: a browser copies all of a canvas that has changed.
  function canvasFrom(component, left) {
    const { chart } = component;
    let canvas = component.lorakitCanvas;
    if (!canvas) {
      canvas = component.lorakitCanvas = document.createElement("canvas");
      canvas.style.cssText = "position:absolute;top:0;right:0;height:100%;pointer-events:none";
      chart.getDom().firstElementChild.append(canvas);
    }
    const ratio = window.devicePixelRatio || 1;
    const size = [chart.getWidth() - left, chart.getHeight()];
    const [width, height] = size.map((pixels) => Math.round(pixels * ratio));
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
      canvas.style.width = `${size[0]}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, -left * ratio, 0);
    return context;
  }

  // Draw the points that are new; return false if only ECharts can draw them.
  function grow(component, lines) {
    const picture = component.lorakitPicture;
    const isOld = !picture || performance.now() > picture.untilMs;
    if (isOld || picture.limit === undefined || component.lorakitZoom) return false;
    const inPixels = scaleOf(component.chart);
    const ends = [...picture.looks.values()].flatMap(({ end }) => (end ? [end[0]] : []));
    picture.left ??= Math.max(0, Math.floor(inPixels([Math.min(...ends), 0])[0]) - SYMBOL);
    const strokes = [];
    for (const [id, line] of lines) {
      if (line.isLevel) continue;
      const looks = picture.looks.get(id);
      const { points } = line;
      if (!looks?.end || !points.length || points[points.length - 1][0] < looks.end[0]) return false;
      let first = points.length;
      while (first > 0 && points[first - 1][0] > looks.end[0]) first--;
      if (first === points.length) continue;
      const isShown = component.lorakitShown?.[line.name] !== false;
      if (isShown && !addStrokes(component.chart, inPixels, looks, points, first, strokes)) return false;
      looks.end = points[points.length - 1];
    }
    const context = canvasFrom(component, picture.left);
    for (const stroke of strokes) draw(context, stroke);
    component.lorakitHasTail = true;
    return true;
  }

  // Add what draws the points of a line from `first` on; return false if the axes do not reach them.
  function addStrokes(chart, inPixels, looks, points, first, strokes) {
    const added = points.slice(first);
    const values = added.map(([, y]) => y).filter((y) => y !== null);
    if (!values.length) return true;
    const last = added[added.length - 1][0];
    for (const y of [Math.min(...values), Math.max(...values)])
      if (!chart.containPixel({ gridIndex: 0 }, inPixels([last, y]))) return false;
    const path = (from, course) => [from, ...course].map((point) => (point[1] === null ? null : inPixels(point)));
    strokes.push({ looks, path: path(looks.end, added) });
    if (looks.hasSymbols) strokes.push({ looks, symbols: path(looks.end, added).slice(1).filter(Boolean) });
    if (!looks.reach) return true;
    const means = added.map(([x], place) => [x, meanBefore(points, first + place, looks.reach)]);
    strokes.push({ looks: looks.ofMean, path: path(looks.mean, means) });
    looks.mean = means[means.length - 1];
    return true;
  }

  function meanBefore(points, place, reach) {
    const known = points.slice(Math.max(0, place - reach), place + 1).filter(([, y]) => y !== null);
    return known.length ? known.reduce((sum, [, y]) => sum + y, 0) / known.length : null;
  }

  // The function from a point to its place; both axes are linear, and ECharts' way is slow.
  function scaleOf(chart) {
    const [width, height] = [chart.getWidth(), chart.getHeight()];
    const [[left, top], [right, bottom]] = [[0, 0], [width, height]].map((at) =>
      chart.convertFromPixel({ gridIndex: 0 }, at),
    );
    return ([x, y]) => [((x - left) / (right - left)) * width, ((y - top) / (bottom - top)) * height];
  }

  function draw(context, { looks, path, symbols }) {
    context.globalAlpha = looks.opacity;
    context.lineWidth = looks.width;
    context.strokeStyle = looks.colour;
    context.setLineDash(symbols ? [] : looks.dash);
    context.beginPath();
    let before = null;
    for (const at of path ?? []) {
      if (before && at) context.lineTo(...at);
      else if (at) context.moveTo(...at);
      before = at;
    }
    context.stroke();
    context.fillStyle = looks.ground;
    for (const at of symbols ?? []) {
      context.beginPath();
      context.arc(...at, 2.5, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
  }

  // Draw without room when no more points come.
  function settle(component, again) {
    clearTimeout(component.lorakitSettling);
    component.lorakitSettling = setTimeout(() => {
      if (component.lorakitPicture?.limit === undefined || component.lorakitZoom) return;
      component.lorakitPace = undefined;
      again();
    }, SETTLES_MS);
  }

  return { begin, grow, limit, note, settle };
})();
