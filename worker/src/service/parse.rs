//! From a message to a request of the engine: every field is checked here and nowhere else.

use std::time::{Duration, Instant};

use cosec_proto::sampling::SamplingParams;
use cosec_proto::transport::MAX_MESSAGE_BYTES;
use cosec_proto::wire::worker::row_request::View as WireView;
use cosec_proto::wire::worker::step_request::Operation as WireOperation;
use cosec_proto::wire::worker::{self as wire};
use cosec_proto::{ErrorCode, SessionId, row_runs};

use crate::engine::Limits;
use crate::engine::operation::{Failure, Request, RowRequest, Work};
use crate::rows::{Precision, View};

/// Time of an operation that names none.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(120);

/// Survivors in a nucleus that names no cap.
const DEFAULT_NUCLEUS: usize = 4096;

/// Most tokens of one draft.
const MAX_DRAFT: u32 = 64;

/// Row requests per row: more would only repeat views.
const REQUESTS_PER_ROW: usize = 4;

/// Room of a response beside its rows, in bytes.
const RESPONSE_OVERHEAD: usize = 1024;

/// A request and the most bytes that its response can take.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) request: Request,
    pub(super) response_bytes: usize,
    /// How many of the request's views each of the message's stands for.
    pub(super) runs: Vec<usize>,
}

/// Checks one operation.
///
/// # Errors
/// `InvalidArgument`, naming the field, its value and what is allowed.
pub(super) fn parse(
    operation: WireOperation,
    deadline_ms: u32,
    received: Instant,
    limits: &Limits,
    adapters: &[String],
    stream: u64,
) -> Result<Parsed, Failure> {
    let mut runs = Vec::new();
    let (session, work, tenant, adapter, response_bytes) = match operation {
        WireOperation::Extend(extend) => {
            let session = session("extend.session", &extend.session)?;
            let at = span("extend", extend.at, &extend.tokens, 0, limits)?;
            let adapter = adapter("extend.adapter", &extend.adapter, adapters)?;
            let (rows, lengths) = rows("extend.rows", extend.rows, extend.tokens.len() + 1, limits)?;
            runs = lengths;
            if let Some(index) = rows.iter().position(|row| at == 0 && row.offset == 0) {
                return Err(invalid(format!(
                    "extend.rows[{index}].offset is 0 at position 0; no row stands before the first token"
                )));
            }
            let bytes = rows_bytes(&rows, limits);
            (session, Work::Extend { at, tokens: extend.tokens, rows }, extend.tenant, adapter, bytes)
        }
        WireOperation::Draft(draft) => {
            let session = session("draft.session", &draft.session)?;
            if !(1..=MAX_DRAFT).contains(&draft.k) {
                return Err(invalid(format!("draft.k is {}; it must be 1 to {MAX_DRAFT}", draft.k)));
            }
            let k = draft.k as usize;
            let at = span("draft", draft.at, &draft.tokens, k - 1, limits)?;
            if at == 0 && draft.tokens.is_empty() {
                return Err(invalid("draft.tokens is empty at position 0; there is nothing to draft from"));
            }
            let warp = warp("draft.warp", draft.warp)?;
            let randomness =
                draft.randomness.ok_or_else(|| invalid("draft.randomness is missing; it is required"))?.into();
            let adapter = adapter("draft.adapter", &draft.adapter, adapters)?;
            let (rows, lengths) = rows("draft.rows", draft.rows, k, limits)?;
            runs = lengths;
            let bytes = 16 * k + rows_bytes(&rows, limits);
            let work = Work::Draft { at, tokens: draft.tokens, k, warp, randomness, rows };
            (session, work, draft.tenant, adapter, bytes)
        }
        WireOperation::Release(release) => (session("release.session", &release.session)?, Work::Release, 0, None, 0),
        WireOperation::Cancel(_) => return Err(invalid("cancel is no operation of a session")),
    };
    let response_bytes = response_bytes + RESPONSE_OVERHEAD;
    if response_bytes > MAX_MESSAGE_BYTES {
        return Err(invalid(format!(
            "rows asks for up to {response_bytes} bytes; a response takes at most {MAX_MESSAGE_BYTES}"
        )));
    }
    let patience = if deadline_ms == 0 { DEFAULT_DEADLINE } else { Duration::from_millis(deadline_ms.into()) };
    let request = Request { session, work, stream, tenant, adapter, received, deadline: received + patience };
    Ok(Parsed { request, response_bytes, runs })
}

pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, message)
}

fn session(field: &str, bytes: &[u8]) -> Result<SessionId, Failure> {
    SessionId::from_wire(bytes).map_err(|error| invalid(format!("{field}: {error}")))
}

/// Checks `tokens` behind `at`, with `more` tokens to come behind them.
fn span(operation: &str, at: u32, tokens: &[u32], more: usize, limits: &Limits) -> Result<usize, Failure> {
    let at = at as usize;
    if tokens.len() > limits.operation_tokens {
        return Err(invalid(format!(
            "{operation}.tokens has {} ids; at most {} are allowed in one operation",
            tokens.len(),
            limits.operation_tokens
        )));
    }
    let end = at + tokens.len() + more;
    if end > limits.context_tokens {
        return Err(invalid(format!(
            "{operation}.at is {at} and its tokens end at {end}; the context has {} tokens",
            limits.context_tokens
        )));
    }
    ids(&format!("{operation}.tokens"), tokens, limits)?;
    Ok(at)
}

fn ids(field: &str, ids: &[u32], limits: &Limits) -> Result<(), Failure> {
    match ids.iter().enumerate().find(|&(_, &id)| id as usize >= limits.vocabulary) {
        Some((index, id)) => Err(invalid(format!(
            "{field}[{index}] is {id}; it must be below the vocabulary of {}",
            limits.vocabulary
        ))),
        None => Ok(()),
    }
}

fn warp(field: &str, warp: Option<wire::SamplingParams>) -> Result<SamplingParams, Failure> {
    let warp = warp.ok_or_else(|| invalid(format!("{field} is missing; it is required")))?;
    SamplingParams::try_from(warp).map_err(|error| invalid(format!("{field}.{error}")))
}

/// Index of the adapter called `name`.
fn adapter(field: &str, name: &str, adapters: &[String]) -> Result<Option<usize>, Failure> {
    if name.is_empty() {
        return Ok(None);
    }
    let known = || if adapters.is_empty() { "the model has none".to_owned() } else { adapters.join(", ") };
    let index = adapters.iter().position(|adapter| adapter == name);
    index.map(Some).ok_or_else(|| invalid(format!("{field} is {name:?}; the adapters are: {}", known())))
}

/// Checks views of rows whose offsets are below `offsets`, with runs taken apart; also says how many views each of `rows`
/// stands for.
fn rows(
    field: &str,
    rows: Vec<wire::RowRequest>,
    offsets: usize,
    limits: &Limits,
) -> Result<(Vec<RowRequest>, Vec<usize>), Failure> {
    let (asked, most) = (rows.iter().map(row_runs::views).sum::<usize>(), REQUESTS_PER_ROW * offsets);
    if asked > most {
        return Err(invalid(format!("{field} has {asked} requests; {offsets} rows allow {most}")));
    }
    let (rows, lengths) = row_runs::split_requests(rows);
    let named = lengths.iter().enumerate().flat_map(|(index, &length)| std::iter::repeat_n(index, length));
    let rows = named.zip(rows).map(|(index, row)| self::row(&format!("{field}[{index}]"), row, offsets, limits));
    Ok((rows.collect::<Result<_, _>>()?, lengths))
}

fn row(field: &str, row: wire::RowRequest, offsets: usize, limits: &Limits) -> Result<RowRequest, Failure> {
    let offset = row.offset as usize;
    if offset >= offsets {
        return Err(invalid(format!("{field}.offset is {offset}; it must be at most {}", offsets - 1)));
    }
    let view = match row.view {
        Some(WireView::Gather(gather)) => {
            if gather.ids.len() > limits.vocabulary {
                return Err(invalid(format!(
                    "{field}.gather.ids has {} ids; the vocabulary has {}",
                    gather.ids.len(),
                    limits.vocabulary
                )));
            }
            ids(&format!("{field}.gather.ids"), &gather.ids, limits)?;
            View::Gather { warp: warp(&format!("{field}.gather.warp"), gather.warp)?, ids: gather.ids }
        }
        Some(WireView::Nucleus(nucleus)) => {
            let cap = if nucleus.cap == 0 { DEFAULT_NUCLEUS } else { nucleus.cap as usize };
            View::Nucleus { warp: warp(&format!("{field}.nucleus.warp"), nucleus.warp)?, cap }
        }
        Some(WireView::Sample(sample)) => {
            if !(0.0..1.0).contains(&sample.u) {
                return Err(invalid(format!("{field}.sample.u is {}; it must be at least 0 and below 1", sample.u)));
            }
            View::Sample { warp: warp(&format!("{field}.sample.warp"), sample.warp)?, u: sample.u }
        }
        Some(WireView::Full(full)) => match full.precision() {
            wire::Precision::F32 => View::Full(Precision::F32),
            wire::Precision::F16 => View::Full(Precision::F16),
            wire::Precision::Unspecified => {
                return Err(invalid(format!(
                    "{field}.full.precision is {}; it must be PRECISION_F32 or PRECISION_F16",
                    full.precision
                )));
            }
        },
        None => {
            return Err(invalid(format!("{field}.view is missing; it must be gather, nucleus, sample or full")));
        }
    };
    Ok(RowRequest { offset, view })
}

/// The most bytes that the views take in a response.
fn rows_bytes(rows: &[RowRequest], limits: &Limits) -> usize {
    rows.iter().map(|row| row_bytes(&row.view, limits)).sum()
}

/// The most bytes that a row takes in a response.
fn row_bytes(view: &View, limits: &Limits) -> usize {
    // Tags and lengths of a row; a varint of an id has at most 5 bytes beside the 8 of its probability.
    const OVERHEAD: usize = 48;
    OVERHEAD
        + match view {
            View::Gather { ids, .. } => 8 * ids.len(),
            View::Nucleus { cap, .. } => 13 * limits.vocabulary.min(*cap),
            View::Sample { .. } => 0,
            View::Full(precision) => precision.bytes() * limits.vocabulary,
        }
}
