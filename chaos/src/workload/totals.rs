//! Totals: range queries whose answer can be computed from what was written, asked in the same words of every tenant.
//!
//! Raw reads prove samples one by one; this proves what dashboards ask: steps, windows, aggregation, and that an answer
//! belongs to who asked. The text does not name a tenant or a writer, so that whatever keeps answers and does not look
//! whose they are gives one tenant another's.

use super::{Shared, failure};
use crate::client::Client;
use crate::history::{Answer, Call, Cell, End, Total};
use crate::load::{points, seconds};
use crate::workload::Numbers;
use engram_model::Millis;
use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::atomic::Ordering;

/// Numbers in the window of one step, so few that their sums are exact.
pub(crate) const WIDTH: u32 = 20;
/// Steps of one query.
pub(crate) const STEPS: u32 = 5;

/// Asks until the run is over.
pub(super) async fn run(shared: Shared, mut chance: StdRng) {
    while !shared.is_over() {
        let reached = shared.reached.iter().map(|reached| reached.load(Ordering::Relaxed)).min().unwrap_or(0);
        let newest = reached.saturating_sub(STEPS * WIDTH);
        // Mostly what is fresh, where heads and blocks meet; now and then anything.
        let first = if chance.random_bool(0.7) {
            newest.saturating_sub(chance.random_range(0..WIDTH)).max(WIDTH)
        } else {
            chance.random_range(WIDTH..=newest.max(WIDTH))
        };
        let total = [Total::Count, Total::Max, Total::Sum, Total::Observed][chance.random_range(0..4)];
        let total = if shared.numbers.observed().is_some() { total } else { total.of_floats() };
        for tenant in 0..shared.numbers.tenants {
            let call = Call::Totals { tenant, total, first };
            let act = |client| ask(shared.numbers, client, tenant, total, first);
            shared.somewhere(&mut chance, None, &call, act).await;
        }
        shared.rest(&mut chance).await;
    }
}

async fn ask(numbers: Numbers, client: Client, tenant: u32, total: Total, first: u32) -> (End, Option<Answer>, String) {
    match numbers.totals(&client, tenant, total, first).await {
        Ok(cells) => (End::Ok, Some(Answer::Totals { cells }), String::new()),
        Err(error) => {
            let (end, why) = failure(&error.to_string());
            (end, None, why)
        }
    }
}

impl Numbers {
    /// A total of each writer over the [`WIDTH`] numbers up to `first`, and of [`STEPS`] - 1 such windows after it.
    async fn totals(
        &self,
        client: &Client,
        tenant: u32,
        total: Total,
        first: u32,
    ) -> Result<Vec<Cell>, crate::error::Error> {
        let (start, end, range_ms) = self.totals_steps(first);
        let params = [
            ("query", self.totals_text(total)),
            ("start", seconds(start)),
            ("end", seconds(end)),
            ("step", seconds(range_ms)),
        ];
        let answer = client.ask("query_range", &params, Some(&self.tenant(tenant))).await?;
        let mut cells = Vec::new();
        for row in answer["data"]["result"].as_array().into_iter().flatten() {
            let writer = row["metric"]["writer"].as_str().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
            cells.extend(points(&row["values"]).into_iter().map(|point| self.totals_cell(writer, first, point)));
        }
        Ok(cells)
    }

    /// The question; it names nobody.
    pub(crate) fn totals_text(&self, total: Total) -> String {
        let (metric, range_ms) = (Self::METRIC, self.time(WIDTH) - self.base);
        match total {
            Total::Count => format!("sum by (writer) (count_over_time({metric}[{range_ms}ms]))"),
            Total::Max => format!("max by (writer) (max_over_time({metric}[{range_ms}ms]))"),
            Total::Observed => {
                let series = self.observed().unwrap_or(0);
                let sum = format!("sum by (writer) (sum_over_time({metric}{{series=\"{series}\"}}[{range_ms}ms]))");
                format!("histogram_count({sum})")
            }
            Total::Sum => format!("sum by (writer) (sum_over_time({metric}{{series=\"0\"}}[{range_ms}ms]))"),
        }
    }

    /// First and last step of it, and the milliseconds between two.
    pub(crate) fn totals_steps(&self, first: u32) -> (Millis, Millis, Millis) {
        (self.time(first), self.time(first + (STEPS - 1) * WIDTH), self.time(WIDTH) - self.base)
    }

    /// A point of the answer.
    pub(crate) fn totals_cell(&self, writer: u32, first: u32, (at, value): (Millis, f64)) -> Cell {
        let (start, _, range_ms) = self.totals_steps(first);
        let step = u32::try_from((at - start) / range_ms.max(1)).unwrap_or(u32::MAX);
        // What is no number of ours is written down as one that is never right.
        Cell { writer, step, value: if value.is_finite() { value } else { -1.0 } }
    }
}
