// Draws what charts.py sends on the ECharts that NiceGUI brings; follows light and dark mode.
(() => {
  const LINES = {
    light: ["#1d4ed8", "#c2410c", "#047857", "#7e22ce", "#be123c", "#0e7490", "#854d0e", "#475569"],
    dark: ["#7cacf8", "#fb9a5b", "#4ad3a0", "#c39af9", "#fb8fa5", "#45c9e0", "#e8c547", "#a8b3c4"],
  };
  const DENSE = 300; // points, from which on a line is drawn pale below its smoothed course
  const DASHES = ["solid", "dashed", "dotted"];
  const GAPS = [[], [6, 6], [2, 2]]; // the same on a canvas
  const waiting = new Map(); // messages of charts that are not mounted yet, by element id
  const mounted = new Set();
  const SEEN = 0.2; // part of a chart
  const [UNSEEN_MS, LATEST_MS] = [2000, 4000]; // after which a chart out of sight takes what has come
  // A chart out of sight is not drawn again until it is seen: drawing is what an open page costs.
  const sight = new IntersectionObserver(
    (entries) => {
      for (const { target, intersectionRatio } of entries) {
        const component = target.lorakitComponent;
        component.lorakitIsSeen = intersectionRatio >= SEEN;
        if (component.lorakitIsSeen) catchUp(component);
        if (component.lorakitIsSeen && component.lorakitIsStale) drawLines(component);
      }
    },
    { threshold: SEEN },
  );
  const resized = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const component = target.lorakitComponent;
      const size = `${contentRect.width} ${contentRect.height}`;
      if (component.lorakitSize && component.lorakitSize !== size) redraw(component);
      component.lorakitSize = size;
    }
  });

  const isDark = () => document.body.classList.contains("body--dark");
  const short = (value) =>
    typeof value === "number" ? String(Number(value.toPrecision(5))) : value ?? "not a number";

  function theme({ chart, lorakitDraw }) {
    const style = getComputedStyle(document.body);
    const [text, rule, panel] = ["--soft", "--line", "--surface"].map((name) =>
      style.getPropertyValue(name).trim(),
    );
    const axis = {
      axisLabel: { color: text },
      nameTextStyle: { color: text },
      axisLine: { lineStyle: { color: text } },
      axisTick: { lineStyle: { color: text } },
      splitLine: { lineStyle: { color: rule } },
    };
    const option = chart.getOption();
    const themed = {
      color: LINES[isDark() ? "dark" : "light"],
      textStyle: { color: text, fontFamily: style.fontFamily },
      legend: { textStyle: { color: text }, inactiveColor: rule, pageTextStyle: { color: text } },
      tooltip: {
        renderMode: "richText", // text of runs never becomes HTML
        confine: true,
        valueFormatter: short,
        backgroundColor: panel,
        borderColor: rule,
        textStyle: { color: text, fontSize: 12 },
      },
    };
    for (const name of ["xAxis", "yAxis", "parallelAxis"])
      if (option[name]?.length) themed[name] = option[name].map(() => axis);
    if (option.visualMap?.length) themed.visualMap = [{ textStyle: { color: text } }];
    lorakitDraw(themed);
  }

  function watchBody() {
    new MutationObserver(() => {
      for (const component of mounted)
        if (component.chart.isDisposed()) mounted.delete(component);
        else {
          theme(component);
          redraw(component);
        }
    }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  }
  document.body ? watchBody() : addEventListener("DOMContentLoaded", watchBody);

  // What the lines show, for people who hear the page; thinned points have the extremes.
  function inWords(component, description) {
    const lines = [...(component.lorakitLines ?? [])].map(([, { name, points, count, isLevel }]) => {
      let [first, last, lowest, highest] = [null, null, Infinity, -Infinity];
      for (const point of points) {
        const y = point[1];
        if (y === null) continue;
        first ??= point;
        last = point;
        if (y < lowest) lowest = y;
        if (y > highest) highest = y;
      }
      if (!first) return `${name}: no number yet`;
      if (isLevel) return `${name}: ${short(first[1])}`;
      return (
        `${name}: ${count} points from ${first[0]} to ${last[0]}, first ${short(first[1])}, ` +
        `last ${short(last[1])}, lowest ${short(lowest)}, highest ${short(highest)}`
      );
    });
    return [description, ...lines].join(". ");
  }

  // Replace the first points of each line that has grown; a line that is not named goes.
  function applyLines(component, message) {
    const held = component.lorakitLines ?? new Map();
    component.lorakitLines = new Map(
      message.order.map((id) => [id, held.get(id) ?? { points: [] }]),
    );
    for (const { id, kept, points, ...looks } of message.lines) {
      const line = component.lorakitLines.get(id);
      Object.assign(line, looks);
      line.points.length = Math.min(kept, line.points.length);
      for (const point of points) line.points.push(point);
    }
    const hasSameLines = held.size === component.lorakitLines.size && message.order.every((id) => held.has(id));
    component.lorakitTitle = message.title;
    const { end } = span(component);
    lorakitTail.note(component, end);
    lorakitTail.settle(component, () => redraw(component));
    if (component.lorakitIsSeen === false) component.lorakitIsStale = true;
    else if (!hasSameLines || !lorakitTail.grow(component, component.lorakitLines)) drawLines(component);
  }

  // The first and the last place of the lines, without levels.
  function span(component) {
    const drawn = [...component.lorakitLines.values()].filter((line) => !line.isLevel && line.points.length);
    return {
      start: Math.min(...drawn.map(({ points }) => points[0][0])),
      end: Math.max(...drawn.map(({ points }) => points[points.length - 1][0])),
    };
  }

  // Draw again what may be covered with newer points, if it is in sight.
  function redraw(component) {
    if (!component.lorakitLines || component.chart.isDisposed()) return;
    if (component.lorakitIsSeen === false) component.lorakitIsStale = true;
    else drawLines(component);
  }

  function drawLines(component) {
    component.lorakitIsStale = false;
    const { start, end } = span(component);
    const limit = lorakitTail.limit(component, start, end);
    const looks = new Map();
    const lines = [...component.lorakitLines];
    const series = lines.flatMap(([id, line], place) => {
      const { points, isLevel } = line;
      const isDense = points.length > DENSE && !isLevel;
      const colour = LINES[isDark() ? "dark" : "light"][place % LINES.light.length];
      const dash = Math.floor(place / LINES.light.length) % 3;
      const drawn = {
        id,
        name: line.name,
        type: "line",
        animation: false,
        emphasis: { disabled: true },
        data: isLevel && limit !== undefined ? [points[0], [limit, points[1][1]]] : points,
        showSymbol: points.length < 40 && !isLevel,
        symbolSize: 5,
        silent: isDense,
        color: colour,
        lineStyle: {
          width: isLevel ? 1.2 : isDense ? 1 : 1.6,
          type: isLevel ? "dashed" : DASHES[dash],
          opacity: isDense ? 0.3 : 1,
        },
      };
      const ofLine = { ...drawn.lineStyle, colour, dash: GAPS[dash], end: points[points.length - 1] };
      ofLine.hasSymbols = drawn.showSymbol;
      looks.set(id, ofLine);
      if (!isDense) return [drawn];
      const data = smoothed(points);
      const mean = { ...drawn, id: `${id} smoothed`, data, silent: false, z: 3 };
      mean.lineStyle = { ...drawn.lineStyle, width: 1.8, opacity: 1 };
      ofLine.ofMean = { ...ofLine, ...mean.lineStyle };
      ofLine.mean = data[data.length - 1];
      ofLine.reach = reachOf(points);
      return [drawn, mean];
    });
    const isNamed = lines.length > 1 || lines[0]?.[1].name !== component.lorakitTitle;
    component.lorakitDraw(
      {
        series,
        // The place where the room ends is no round number.
        xAxis: { max: limit ?? "dataMax", axisLabel: { showMaxLabel: limit === undefined ? null : false } },
        legend: { show: isNamed, data: [...new Set(lines.map(([, line]) => line.name))] },
        grid: { top: isNamed ? 36 : 12 },
      },
      { replaceMerge: ["series"] },
    );
    const ground = getComputedStyle(document.body).getPropertyValue("--surface").trim();
    for (const each of looks.values()) each.ground = ground;
    lorakitTail.begin(component, limit, looks);
  }

  const reachOf = (points) => Math.ceil(points.length / 60);

  // The mean of the points around each, so that the course of a noisy line is seen.
  function smoothed(points) {
    const reach = reachOf(points);
    let [sum, count, first, last] = [0, 0, 0, 0];
    return points.map(([x], place) => {
      for (; last < Math.min(points.length, place + reach); last++)
        if (points[last][1] !== null) [sum, count] = [sum + points[last][1], count + 1];
      for (; first < place - reach; first++)
        if (points[first][1] !== null) [sum, count] = [sum - points[first][1], count - 1];
      return [x, count ? sum / count : null];
    });
  }

  function receive(component, message) {
    (component.lorakitLater ??= []).push(message);
    const isDue = performance.now() - (component.lorakitTakenMs ?? 0) > UNSEEN_MS;
    // With the charts in sight, because each moment in which a page changes is a frame.
    if (component.lorakitIsSeen !== false || message.option || isDue) catchUp(component);
    else component.lorakitCatching ??= setTimeout(() => catchUp(component), LATEST_MS);
  }

  function catchUp(component) {
    clearTimeout(component.lorakitCatching);
    component.lorakitCatching = undefined;
    component.lorakitTakenMs = performance.now();
    if (component.chart.isDisposed()) return;
    for (const message of component.lorakitLater?.splice(0) ?? []) take(component, message);
  }

  function take(component, message) {
    const { chart } = component;
    if (!mounted.has(component)) {
      mounted.add(component);
      component.$el.setAttribute("role", "img");
      component.$el.lorakitComponent = component;
      sight.observe(component.$el);
      resized.observe(component.$el);
      chart.getZr().setSleepAfterStill(1); // else it asks for frames after it has drawn
      component.lorakitDraw = chart.setOption.bind(chart);
      chart.setOption = () => {}; // NiceGUI would draw the empty option of its element again
      let timer;
      chart.on("datazoom", () => {
        if (component.lorakitHasTail) redraw(component);
        clearTimeout(timer);
        timer = setTimeout(() => {
          const { startValue, endValue, start, end } = chart.getOption().dataZoom[0];
          component.lorakitZoom = start === 0 && end === 100 ? null : [startValue, endValue];
          component.$emit("range", component.lorakitZoom);
        }, 200);
      });
      chart.on("legendselectchanged", ({ selected }) => {
        component.lorakitShown = selected;
        redraw(component);
      });
      chart.getZr().on("mousemove", () => {
        if (component.lorakitHasTail) redraw(component); // what is pointed at is told by ECharts
      });
      chart.getZr().on("dblclick", () =>
        chart.dispatchAction({ type: "dataZoom", start: 0, end: 100 }),
      );
    }
    if (message.option) {
      component.lorakitDraw(message.option, { notMerge: true });
      theme(component);
    }
    if (message.lines) applyLines(component, message);
    component.$el.setAttribute("aria-label", inWords(component, message.description));
  }

  function flush(id, find, tries) {
    const component = find(id);
    if (component?.chart) {
      const messages = waiting.get(id);
      waiting.delete(id);
      for (const message of messages) receive(component, message);
    } else if (tries > 0) setTimeout(() => flush(id, find, tries - 1), 20);
    else waiting.delete(id);
  }

  // Take a message for a chart; `find` returns the component of an element's id.
  window.lorakitChart = (id, find, message) => {
    if (waiting.has(id)) {
      waiting.get(id).push(message);
      return;
    }
    waiting.set(id, [message]);
    flush(id, find, 500);
  };
})();
