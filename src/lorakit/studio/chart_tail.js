// Draws what a run adds to its lines over the picture that ECharts has drawn, segment by segment.
// ECharts draws all points of a chart again for each one that is new, which takes a hundred times as
// long. So it draws with room for the points of some seconds, and again when the room is used up.
window.lorakitTail = (() => {
  const MOST_ROOM = 0.15; // of the picture, but for
  const [LEAST_MS, MOST_MS] = [8000, 30000]; // between two pictures by ECharts while points come
  const PACE_MS = 2000;

  // Note how far the lines reach, from which follows how fast they grow.
  function note(component, end) {
    if (!Number.isFinite(end)) return;
    const now = performance.now();
    const before = (component.lorakitPace ??= { ms: now, end, perMs: 0 });
    const passed = now - before.ms;
    if (passed < PACE_MS) return;
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
    if (component.lorakitHasTail) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    component.lorakitHasTail = false;
  }

  function canvasOf(component) {
    const { chart } = component;
    let canvas = component.lorakitCanvas;
    if (!canvas) {
      canvas = component.lorakitCanvas = document.createElement("canvas");
      canvas.style.cssText = "position:absolute;inset:0;width:100%;height:100%;pointer-events:none";
      chart.getDom().firstElementChild.append(canvas);
    }
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [chart.getWidth() * ratio, chart.getHeight() * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  // Draw the points that are new; return false if only ECharts can draw them.
  function grow(component, lines) {
    const picture = component.lorakitPicture;
    const isOld = !picture || performance.now() > picture.untilMs;
    if (isOld || picture.limit === undefined || component.lorakitZoom) return false;
    const strokes = [];
    for (const [id, line] of lines) {
      if (line.isLevel) continue;
      const looks = picture.looks.get(id);
      const { points } = line;
      if (!looks?.end || !points.length || points[points.length - 1][0] < looks.end[0]) return false;
      let first = points.length;
      while (first > 0 && points[first - 1][0] > looks.end[0]) first--;
      for (let place = first; place < points.length; place++) {
        const isShown = component.lorakitShown?.[line.name] !== false;
        if (isShown && !addStrokes(component.chart, looks, points, place, strokes)) return false;
        looks.end = points[place];
      }
    }
    const context = canvasOf(component);
    for (const stroke of strokes) draw(context, stroke);
    component.lorakitHasTail = true;
    return true;
  }

  function addStrokes(chart, looks, points, place, strokes) {
    const [x, y] = points[place];
    if (y === null) return true;
    const at = pixelOf(chart, x, y);
    if (!at) return false;
    if (looks.end[1] !== null) strokes.push({ looks, from: pixelOf(chart, ...looks.end), to: at });
    if (looks.hasSymbols) strokes.push({ looks, symbol: at });
    if (!looks.reach) return true;
    const known = points.slice(Math.max(0, place - looks.reach), place + 1).filter(([, y]) => y !== null);
    const mean = [x, known.reduce((sum, [, y]) => sum + y, 0) / known.length];
    if (looks.mean[1] !== null)
      strokes.push({ looks: looks.ofMean, from: pixelOf(chart, ...looks.mean), to: pixelOf(chart, ...mean) });
    looks.mean = mean;
    return true;
  }

  // The place of a point, or undefined if it is outside of the axes.
  function pixelOf(chart, x, y) {
    const at = chart.convertToPixel({ gridIndex: 0 }, [x, y]);
    return chart.containPixel({ gridIndex: 0 }, at) ? at : undefined;
  }

  function draw(context, { looks, from, to, symbol }) {
    context.globalAlpha = looks.opacity;
    context.lineWidth = looks.width;
    context.strokeStyle = looks.colour;
    context.setLineDash(looks.dash);
    context.beginPath();
    if (symbol) {
      context.setLineDash([]);
      context.fillStyle = looks.ground;
      context.arc(...symbol, 2.5, 0, 2 * Math.PI);
      context.fill();
    } else if (from && to) {
      context.moveTo(...from);
      context.lineTo(...to);
    }
    context.stroke();
  }

  // Draw without room when no more points come.
  function settle(component, again) {
    clearTimeout(component.lorakitSettling);
    component.lorakitSettling = setTimeout(() => {
      if (component.lorakitPicture?.limit === undefined || component.lorakitZoom) return;
      component.lorakitPace = undefined;
      again();
    }, MOST_MS);
  }

  return { begin, grow, limit, note, settle };
})();
