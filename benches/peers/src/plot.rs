//! Bar charts: one file per measure, with a panel per workload.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Fallible;
use crate::engine::{EngineId, KeyForm, Order};
use crate::results::{Measure, Quartiles, Results, Workload};

const WIDTH: i32 = 860;
const BAR: i32 = 15;
const ROW: i32 = 2 * BAR + 10;
const HEAD: i32 = 56;
const LABELS: i32 = 110;
const FIGURES: i32 = 150;
const COLOURS: [(Order, RGBColor); 2] =
    [(Order::Sorted, RGBColor(52, 101, 164)), (Order::Shuffled, RGBColor(193, 125, 17))];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws all charts to `out`.
///
/// # Errors
/// If a file cannot be written.
pub fn all(results: &Results, out: &Path) -> Fallible {
    for measure in Measure::ALL {
        let panels = results.settings.row_bytes.len() as i32;
        let height = HEAD + results.settings.engines.len() as i32 * ROW + 12;
        let path = out.join(format!("peers-{}.svg", measure.name()));
        let root = SVGBackend::new(&path, (WIDTH as u32, (height * panels) as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        for (row_bytes, area) in results.settings.row_bytes.iter().zip(root.split_evenly((panels as usize, 1))) {
            panel(results, measure, *row_bytes, &area)?;
        }
        root.present()?;
    }
    Ok(())
}

/// The scale of an axis. Bars are logarithmic, from a power of ten below the least value, because the engines differ by
/// more than a linear bar can show.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max).max(1e-9);
        let least = 10_f64.powf((least.min(most) * 0.8).log10().floor());
        Self { least, most: most.max(least * 10.0) }
    }

    fn place(&self, value: f64) -> i32 {
        let share = (value.max(self.least) / self.least).ln() / (self.most / self.least).ln();
        LABELS + (share * f64::from(WIDTH - LABELS - FIGURES)) as i32
    }
}

fn panel(results: &Results, measure: Measure, row_bytes: usize, area: &Area<'_>) -> Fallible {
    let (unit, share) = measure.unit();
    let title = ("sans-serif", 16).into_font().color(&BLACK);
    let small = ("sans-serif", 12).into_font().color(&BLACK);
    area.draw(&Text::new(format!("{}, rows of {row_bytes} B: {unit}, logarithmic", measure.title()), (10, 8), title))?;
    for (place, ((_, colour), name)) in COLOURS.iter().zip(["loaded in order", "loaded shuffled"]).enumerate() {
        let left = LABELS + place as i32 * 140;
        area.draw(&Rectangle::new([(left, 34), (left + 12, 46)], colour.filled()))?;
        area.draw(&Text::new(name, (left + 18, 34), small.clone()))?;
    }
    let quartiles = |engine: EngineId, order: Order| {
        results.quartiles(engine, Workload { row_bytes, keys: KeyForm::Number, order, measure }).map(|q| Quartiles {
            low: q.low / share,
            median: q.median / share,
            high: q.high / share,
        })
    };
    let engines = &results.settings.engines;
    let medians = engines
        .iter()
        .flat_map(|engine| COLOURS.iter().filter_map(|(order, _)| quartiles(*engine, *order)).map(|q| q.median));
    let scale = Scale::of(medians);
    let right = small.clone().pos(Pos::new(HPos::Right, VPos::Center));
    for (at, engine) in engines.iter().enumerate() {
        let top = HEAD + at as i32 * ROW;
        area.draw(&Text::new(engine.name(), (LABELS - 8, top + BAR), right.clone()))?;
        for (bar, (order, colour)) in COLOURS.iter().enumerate() {
            if let Some(quartiles) = quartiles(*engine, *order) {
                draw_bar(area, &scale, quartiles, top + bar as i32 * BAR, *colour)?;
            }
        }
    }
    Ok(())
}

fn draw_bar(area: &Area<'_>, scale: &Scale, quartiles: Quartiles, top: i32, colour: RGBColor) -> Fallible {
    let small = ("sans-serif", 12).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
    let (low, end, high) = (scale.place(quartiles.low), scale.place(quartiles.median), scale.place(quartiles.high));
    let middle = top + BAR / 2;
    area.draw(&Rectangle::new([(LABELS, top + 1), (end.max(LABELS + 1), top + BAR - 1)], colour.filled()))?;
    area.draw(&PathElement::new([(low, middle), (high, middle)], BLACK))?;
    let digits = if quartiles.median < 10.0 { 2 } else { 0 };
    area.draw(&Text::new(format!("{:.digits$}", quartiles.median), (end.max(high) + 6, middle), small))?;
    Ok(())
}
