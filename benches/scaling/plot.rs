//! Charts.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::measure::{Rest, Series};
use crate::statistics::Percentiles;
use crate::{Fallible, Step};

// Colours of the palette of Okabe and Ito, which people with colour blindness can distinguish.
const OURS: RGBColor = RGBColor(0, 114, 178);
const RAW: RGBColor = RGBColor(213, 94, 0);
const OTHER: RGBColor = RGBColor(0, 158, 115);
const GREY: RGBColor = RGBColor(110, 110, 110);
const SIZE: (u32, u32) = (900, 480);
/// The width of the legend on the right.
const LEGEND: u32 = 270;
const FONT: &str = "sans-serif";

/// The style of a line.
#[derive(Clone, Copy)]
enum Stroke {
    Solid,
    Dashed,
    Dotted,
}

/// A percentile: its name, its line style, and its accessor.
type Kind = (&'static str, Stroke, fn(&Percentiles) -> f64);

struct Line {
    name: String,
    colour: RGBColor,
    stroke: Stroke,
    points: Vec<(f64, f64)>,
}

struct Chart<'a> {
    title: &'a str,
    y: &'a str,
    lines: Vec<Line>,
    /// The start of the vertical axis, if not just below the lowest value.
    from: Option<f64>,
}

fn line(name: &str, colour: RGBColor, stroke: Stroke, points: impl Iterator<Item = (f64, f64)>) -> Line {
    Line { name: name.into(), colour, stroke, points: points.filter(|(_, y)| y.is_finite() && *y > 0.0).collect() }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes all charts to `folder`.
pub(crate) fn write(folder: &Path, steps: &[Step]) -> Fallible {
    let path = folder.join("scaling-latency.svg");
    let root = SVGBackend::new(&path, (SIZE.0 * 2, SIZE.1)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0);
    let most = steps.iter().flat_map(|step| [&step.rest.hit, &step.rest.miss, &step.rest.raw]);
    let most = most.map(|series| series.ns.p999).fold(1.0, f64::max) * 1.3;
    draw(
        &left,
        &latency("Reads of present keys, a key of a batch of 256", "get", steps, |rest| [&rest.hit, &rest.raw]),
        Some(most),
    )?;
    draw(
        &right,
        &latency("Reads of absent keys, a key of a batch of 256", "miss", steps, |rest| [&rest.miss, &rest.raw]),
        Some(most),
    )?;
    root.present()?;
    let wide = latency("Reads of 3,072 B, a row of a batch of 256", "get", steps, |rest| [&rest.wide, &rest.wide_raw]);
    single(&folder.join("scaling-wide.svg"), &wide)?;
    single(&folder.join("scaling-throughput.svg"), &throughput(steps))?;
    single(&folder.join("scaling-open.svg"), &open(steps))?;
    let path = folder.join("scaling-space.svg");
    let root = SVGBackend::new(&path, (SIZE.0 * 2, SIZE.1)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0);
    draw(&left, &disk(steps), None)?;
    draw(&right, &memory(steps), None)?;
    root.present()?;
    Ok(())
}

fn single(path: &Path, chart: &Chart<'_>) -> Fallible {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    draw(&root, chart, None)?;
    root.present()?;
    Ok(())
}

fn latency<'a>(title: &'a str, name: &str, steps: &[Step], of: impl Fn(&Rest) -> [&Series; 2]) -> Chart<'a> {
    let percentile = |series: &dyn Fn(&Step) -> Percentiles, at: fn(&Percentiles) -> f64| -> Vec<(f64, f64)> {
        steps.iter().map(|step| (step.keys as f64, at(&series(step)))).collect()
    };
    let (ours, raw) = (|step: &Step| of(&step.rest)[0].ns, |step: &Step| of(&step.rest)[1].ns);
    let kinds: [Kind; 3] = [
        ("p99.9", Stroke::Dotted, |of| of.p999),
        ("p99", Stroke::Dashed, |of| of.p99),
        ("p50", Stroke::Solid, |of| of.p50),
    ];
    let mut lines = Vec::new();
    for (what, stroke, at) in kinds {
        lines.push(line(&format!("{name} {what}"), OURS, stroke, percentile(&ours, at).into_iter()));
    }
    for (what, stroke, at) in kinds {
        lines.push(line(&format!("raw {what}"), RAW, stroke, percentile(&raw, at).into_iter()));
    }
    Chart { title, y: "ns a key", lines, from: Some(1.0) }
}

fn throughput(steps: &[Step]) -> Chart<'static> {
    let stretches = || steps.iter().flat_map(|step| &step.load.stretches);
    Chart {
        title: "Loading, by stretches that end with a flush",
        y: "keys a second",
        lines: vec![
            line("put", OTHER, Stroke::Dashed, stretches().map(|of| (of.keys as f64, of.puts_per_second()))),
            line("put and flush", OURS, Stroke::Solid, stretches().map(|of| (of.keys as f64, of.flushed_per_second()))),
        ],
        from: None,
    }
}

fn open(steps: &[Step]) -> Chart<'static> {
    let of = |at: usize| {
        steps.iter().map(move |step| (step.keys as f64, step.rest.open_ms.get(at).copied().unwrap_or(f64::NAN)))
    };
    Chart {
        title: "Opening after a clean close",
        y: "ms",
        lines: vec![
            line("highest", GREY, Stroke::Dotted, of(2)),
            line("median", OURS, Stroke::Solid, of(0)),
            line("lowest", GREY, Stroke::Dashed, of(1)),
        ],
        from: None,
    }
}

fn disk(steps: &[Step]) -> Chart<'static> {
    let a_key = |bytes: fn(&Step) -> u64| {
        steps.iter().map(move |step| (step.keys as f64, bytes(step) as f64 / step.keys as f64))
    };
    Chart {
        title: "Disk after a clean close",
        y: "bytes a key",
        lines: vec![
            line("all files", OURS, Stroke::Solid, a_key(|step| step.rest.disk_bytes)),
            line("index runs of them", OTHER, Stroke::Dashed, a_key(|step| step.rest.run_bytes)),
        ],
        from: Some(1.0),
    }
}

fn memory(steps: &[Step]) -> Chart<'static> {
    let a_key = |bytes: fn(&Step) -> u64| {
        steps.iter().map(move |step| (step.keys as f64, bytes(step) as f64 / step.keys as f64))
    };
    Chart {
        title: "Resident memory",
        y: "bytes a key",
        lines: vec![
            line("mapped files, all rows read", RAW, Stroke::Dotted, a_key(|step| step.rest.memory.read_file)),
            line(
                "anonymous, highest while loading",
                OTHER,
                Stroke::Dashed,
                a_key(|step| step.load.most_anonymous_bytes),
            ),
            line("anonymous, all rows read", OURS, Stroke::Solid, a_key(|step| step.rest.memory.read_anonymous)),
            line("anonymous, opened", GREY, Stroke::Dashed, a_key(|step| step.rest.memory.opened_anonymous)),
        ],
        from: None,
    }
}

/// A label of an axis: `1e5`, `200`, `0.05`. Empty unless it begins with one of `digits`, so that labels of a
/// logarithmic axis do not overlap.
fn axis(value: f64, digits: &[f64]) -> String {
    let exponent = (value.log10() + 1e-9).floor();
    let digit = (value / 10_f64.powf(exponent)).round();
    match value {
        _ if !digits.contains(&digit) => String::new(),
        value if value >= 1e4 => format!("{digit}e{exponent}"),
        value => format!("{}", (value * 1e6).round() / 1e6),
    }
}

fn draw(area: &Area<'_>, chart: &Chart<'_>, top: Option<f64>) -> Fallible {
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)))
    };
    let ((first, last), (low, high)) = (bounds(|point| point.0), bounds(|point| point.1));
    if !(first.is_finite() && low.is_finite()) {
        return Ok(());
    }
    let (low, high) = (chart.from.unwrap_or(low / 1.6), top.unwrap_or(high * 1.6));
    // Over many decades, only powers of ten are labelled.
    let y_digits: &[f64] = if high / low > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let mut context = ChartBuilder::on(area)
        .caption(chart.title, (FONT, 20))
        .margin(14)
        .margin_right(LEGEND)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d((first / 1.3..last * 1.3).log_scale(), (low..high).log_scale())?;
    context
        .configure_mesh()
        .x_desc("keys in the store")
        .y_desc(chart.y)
        .axis_desc_style((FONT, 16))
        .label_style((FONT, 14))
        .bold_line_style(GREY.mix(0.35))
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|value| axis(*value, &[1.0]))
        .y_label_formatter(&|value| axis(*value, y_digits))
        .draw()?;
    for line in &chart.lines {
        let style = line.colour.stroke_width(2);
        let points = line.points.iter().copied();
        match line.stroke {
            Stroke::Solid => drop(context.draw_series(LineSeries::new(points, style))?),
            Stroke::Dashed => drop(context.draw_series(DashedLineSeries::new(points, 8, 5, style))?),
            Stroke::Dotted => drop(context.draw_series(DashedLineSeries::new(points, 2, 4, style))?),
        }
        context.draw_series(line.points.iter().map(|point| Circle::new(*point, 3, line.colour.filled())))?;
    }
    legend(area, chart)
}

/// Draws names next to short strokes, on the right of the chart.
fn legend(area: &Area<'_>, chart: &Chart<'_>) -> Fallible {
    const ROW: i32 = 22;
    let (x, y) = (SIZE.0 as i32 - LEGEND as i32 + 14, 60);
    for (number, line) in (0..).zip(&chart.lines) {
        let middle = y + ROW * number;
        let (dash, step) = match line.stroke {
            Stroke::Solid => (36, 36),
            Stroke::Dashed => (8, 13),
            Stroke::Dotted => (2, 6),
        };
        for start in (0..36).step_by(step) {
            let ends = vec![(x + start, middle), (x + (start + dash).min(36), middle)];
            area.draw(&PathElement::new(ends, line.colour.stroke_width(2)))?;
        }
        let style = (FONT, 14).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(line.name.clone(), (x + 44, middle), style))?;
    }
    Ok(())
}
