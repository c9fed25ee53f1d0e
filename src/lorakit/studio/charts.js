// Draws what charts.py sends on the ECharts that NiceGUI brings; follows light and dark mode.
(() => {
  const LINES = {
    light: ["#1d4ed8", "#c2410c", "#047857", "#7e22ce", "#be123c", "#0e7490", "#854d0e", "#475569"],
    dark: ["#7cacf8", "#fb9a5b", "#4ad3a0", "#c39af9", "#fb8fa5", "#45c9e0", "#e8c547", "#a8b3c4"],
  };
  const DENSE = 300; // points, from which on a line is drawn pale below its smoothed course
  const DASHES = ["solid", "dashed", "dotted"];
  const waiting = new Map(); // messages of charts that are not mounted yet, by element id
  const mounted = new Set();
  // A chart out of sight is not drawn again until it is seen: drawing is what an open page costs.
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const component = target.lorakitComponent;
      component.lorakitIsSeen = isIntersecting;
      if (isIntersecting && component.lorakitIsStale) drawLines(component);
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
          if (component.lorakitLines) drawLines(component);
        }
    }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  }
  document.body ? watchBody() : addEventListener("DOMContentLoaded", watchBody);

  // What the lines show, for people who hear the page; thinned points have the extremes.
  function inWords(component, description) {
    const lines = [...(component.lorakitLines ?? [])].map(([, line]) => {
      const known = line.points.filter(([, y]) => y !== null);
      if (!known.length) return `${line.name}: no number yet`;
      const values = known.map(([, y]) => y);
      if (line.isLevel) return `${line.name}: ${short(values[0])}`;
      const [first, last] = [known[0], known[known.length - 1]];
      return (
        `${line.name}: ${line.count} points from ${first[0]} to ${last[0]}, first ` +
        `${short(first[1])}, last ${short(last[1])}, lowest ${short(Math.min(...values))}, ` +
        `highest ${short(Math.max(...values))}`
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
    component.lorakitTitle = message.title;
    component.lorakitIsStale = true;
    if (component.lorakitIsSeen !== false) drawLines(component);
  }

  function drawLines(component) {
    component.lorakitIsStale = false;
    const lines = [...component.lorakitLines];
    const series = lines.flatMap(([id, line], place) => {
      const isDense = line.points.length > DENSE && !line.isLevel;
      const colour = place % LINES.light.length;
      const shared = { name: line.name, type: "line", animation: false, emphasis: { disabled: true } };
      const drawn = {
        ...shared,
        id,
        data: line.points,
        showSymbol: line.points.length < 40 && !line.isLevel,
        symbolSize: 5,
        silent: isDense,
        color: LINES[isDark() ? "dark" : "light"][colour],
        lineStyle: {
          width: line.isLevel ? 1.2 : isDense ? 1 : 1.6,
          type: line.isLevel ? "dashed" : DASHES[Math.floor(place / LINES.light.length) % 3],
          opacity: isDense ? 0.3 : 1,
        },
      };
      if (!isDense) return [drawn];
      const mean = { ...drawn, id: `${id} smoothed`, data: smoothed(line.points), silent: false };
      return [drawn, { ...mean, lineStyle: { ...drawn.lineStyle, width: 1.8, opacity: 1 }, z: 3 }];
    });
    const isNamed = lines.length > 1 || lines[0]?.[1].name !== component.lorakitTitle;
    component.lorakitDraw(
      {
        series,
        legend: { show: isNamed, data: [...new Set(lines.map(([, line]) => line.name))] },
        grid: { top: isNamed ? 36 : 12 },
      },
      { replaceMerge: ["series"] },
    );
  }

  // The mean of the points around each, so that the course of a noisy line is seen.
  function smoothed(points) {
    const reach = Math.ceil(points.length / 60);
    let [sum, count, first, last] = [0, 0, 0, 0];
    return points.map(([x], place) => {
      for (; last < Math.min(points.length, place + reach); last++)
        if (points[last][1] !== null) [sum, count] = [sum + points[last][1], count + 1];
      for (; first < place - reach; first++)
        if (points[first][1] !== null) [sum, count] = [sum - points[first][1], count - 1];
      return [x, count ? sum / count : null];
    });
  }

  function take(component, message) {
    const { chart } = component;
    if (!mounted.has(component)) {
      mounted.add(component);
      component.$el.setAttribute("role", "img");
      component.$el.lorakitComponent = component;
      sight.observe(component.$el);
      component.lorakitDraw = chart.setOption.bind(chart);
      chart.setOption = () => {}; // NiceGUI would draw the empty option of its element again
      let timer;
      chart.on("datazoom", () => {
        clearTimeout(timer);
        timer = setTimeout(() => {
          const { startValue, endValue, start, end } = chart.getOption().dataZoom[0];
          component.$emit("range", start === 0 && end === 100 ? null : [startValue, endValue]);
        }, 200);
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
    const component = find();
    if (component?.chart) {
      const messages = waiting.get(id);
      waiting.delete(id);
      for (const message of messages) take(component, message);
    } else if (tries > 0) setTimeout(() => flush(id, find, tries - 1), 20);
    else waiting.delete(id);
  }

  window.lorakitChart = (id, find, message) => {
    if (waiting.has(id)) {
      waiting.get(id).push(message);
      return;
    }
    waiting.set(id, [message]);
    flush(id, find, 500);
  };
})();
