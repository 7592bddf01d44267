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
        let range_ms = self.time(WIDTH) - self.base;
        let metric = Self::METRIC;
        let query = match total {
            Total::Count => format!("sum by (writer) (count_over_time({metric}[{range_ms}ms]))"),
            Total::Max => format!("max by (writer) (max_over_time({metric}[{range_ms}ms]))"),
            Total::Observed => {
                let series = self.observed().unwrap_or(0);
                let sum = format!("sum by (writer) (sum_over_time({metric}{{series=\"{series}\"}}[{range_ms}ms]))");
                format!("histogram_count({sum})")
            }
            Total::Sum => format!("sum by (writer) (sum_over_time({metric}{{series=\"0\"}}[{range_ms}ms]))"),
        };
        let last = first + (STEPS - 1) * WIDTH;
        let params = [
            ("query", query),
            ("start", seconds(self.time(first))),
            ("end", seconds(self.time(last))),
            ("step", seconds(range_ms)),
        ];
        let answer = client.ask("query_range", &params, Some(&self.tenant(tenant))).await?;
        let mut cells = Vec::new();
        for row in answer["data"]["result"].as_array().into_iter().flatten() {
            let writer = row["metric"]["writer"].as_str().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
            for (at, value) in points(&row["values"]) {
                let step = u32::try_from((at - self.time(first)) / range_ms.max(1)).unwrap_or(u32::MAX);
                // What is no number of ours is written down as one that is never right.
                let value = if value.is_finite() { value } else { -1.0 };
                cells.push(Cell { writer, step, value });
            }
        }
        Ok(cells)
    }
}
