//! Runs: the same lookup at position after position travels as one request and one answer.
//!
//! A block of drafts is judged by one probability per position. Apart, each would take the sampling parameters again
//! and the tags of a message of its own; as a run it takes the id and eight bytes.

use crate::limits::{REQUESTS_PER_POSITION, WorkerLimits};
use crate::wire::worker as wire;
use crate::wire::worker::row::Content;
use crate::wire::worker::row_request::View;
use crate::{LogitsRequest, LogitsResult, LogitsView, OperationError};

/// One request of a message, which may stand for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsRun {
    /// Of its first view.
    offset: u32,
    /// Views that it stands for; at least 1.
    length: usize,
}

/// Encodes requests and joins neighbouring lookups of one id each, at consecutive positions with the same parameters.
pub(crate) fn encode_requests(requests: &[LogitsRequest]) -> Vec<wire::RowRequest> {
    let mut encoded: Vec<wire::RowRequest> = Vec::with_capacity(requests.len());
    for LogitsRequest { offset, view } in requests {
        if let LogitsView::Gather { sampling, ids } = view
            && let [id] = ids[..]
            && let Some(wire::RowRequest { offset: first, view: Some(View::Gather(run)) }) = encoded.last_mut()
            && run.warp == Some((*sampling).into())
            && (run.each || run.ids.len() == 1)
            && *offset as usize == *first as usize + run.ids.len()
        {
            run.each = true;
            run.ids.push(id);
        } else {
            encoded.push(wire::RowRequest { offset: *offset, view: Some(view.encode()) });
        }
    }
    encoded
}

/// Checks the requests in `field` of a message, whose offsets must be below `offsets`, and takes runs apart.
pub(crate) fn decode_requests(
    field: &str,
    requests: Vec<wire::RowRequest>,
    offsets: usize,
    limits: &WorkerLimits,
) -> Result<(Vec<LogitsRequest>, Vec<LogitsRun>), OperationError> {
    let (asked, most) = (requests.iter().map(views).sum::<usize>(), REQUESTS_PER_POSITION * offsets);
    if asked > most {
        return Err(OperationError::invalid(format!("{field} has {asked} requests; {offsets} rows allow {most}")));
    }
    let (mut decoded, mut runs) = (Vec::with_capacity(asked), Vec::with_capacity(requests.len()));
    for (index, request) in requests.into_iter().enumerate() {
        let (field, first) = (format!("{field}[{index}]"), decoded.len());
        let offset = request.offset;
        let mut decode = |offset: u32, view| {
            if offset as usize >= offsets {
                let most = offsets - 1;
                let message = format!("{field}.offset is {offset}; it must be at most {most}");
                return Err(OperationError::invalid(message));
            }
            let view = LogitsView::decode(&field, view, limits.vocabulary)?;
            decoded.push(LogitsRequest { offset, view });
            Ok(())
        };
        match request.view {
            Some(View::Gather(wire::Gather { warp, ids, each: true })) if !ids.is_empty() => {
                for (offset, id) in (offset..=u32::MAX).zip(ids) {
                    decode(offset, Some(View::Gather(wire::Gather { warp, ids: vec![id], each: false })))?;
                }
            }
            view => decode(offset, view)?,
        }
        runs.push(LogitsRun { offset, length: decoded.len() - first });
    }
    Ok((decoded, runs))
}

/// Views that a request of a message stands for.
fn views(request: &wire::RowRequest) -> usize {
    match &request.view {
        Some(View::Gather(wire::Gather { ids, each: true, .. })) => ids.len().max(1),
        _ => 1,
    }
}

/// Encodes the answers to requests that [`decode_requests`] took apart: one for each run.
pub(crate) fn encode_results(results: Vec<LogitsResult>, runs: &[LogitsRun]) -> Vec<wire::Row> {
    let mut contents = results.into_iter().map(LogitsResult::encode);
    let encode = |run: &LogitsRun| {
        let mut joined = contents.next()?;
        for content in contents.by_ref().take(run.length - 1) {
            if let (Content::Gathered(joined), Content::Gathered(next)) = (&mut joined, content) {
                joined.probabilities.extend(next.probabilities);
            }
        }
        Some(wire::Row { offset: run.offset, content: Some(joined) })
    };
    runs.iter().filter_map(encode).collect()
}

/// Checks the answers to `requests`. Several probabilities where one was asked for answer a run.
pub(crate) fn decode_results(
    requests: &[LogitsRequest],
    rows: Vec<wire::Row>,
    vocabulary: u32,
) -> Result<Vec<LogitsResult>, OperationError> {
    let count =
        |answers: usize| OperationError::impossible(format!("{answers} rows, {} were asked for", requests.len()));
    let mut results = Vec::with_capacity(requests.len());
    let check = |results: &mut Vec<LogitsResult>, offset: u32, content| {
        let request = requests.get(results.len()).ok_or_else(|| count(results.len() + 1))?;
        if offset != request.offset {
            return Err(OperationError::impossible(format!("row {offset} in place of {}", request.offset)));
        }
        results.push(request.view.check(content, vocabulary)?);
        Ok(())
    };
    for wire::Row { offset, content } in rows {
        let is_point = matches!(
            requests.get(results.len()),
            Some(LogitsRequest { view: LogitsView::Gather { ids, .. }, .. }) if ids.len() == 1
        );
        match content {
            Some(Content::Gathered(wire::Gathered { probabilities })) if is_point && probabilities.len() > 1 => {
                for (offset, probability) in (offset..=u32::MAX).zip(probabilities) {
                    let probabilities = vec![probability];
                    check(&mut results, offset, Some(Content::Gathered(wire::Gathered { probabilities })))?;
                }
            }
            content => check(&mut results, offset, content)?,
        }
    }
    if results.len() == requests.len() { Ok(results) } else { Err(count(results.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{SamplingParams, TokenProbability};

    const LIMITS: WorkerLimits = WorkerLimits { vocabulary: 16, context_tokens: 64, operation_tokens: 64 };

    fn gather(offset: u32, ids: &[u32], temperature: f64) -> LogitsRequest {
        let sampling = SamplingParams::new(temperature, 1.0, 0).unwrap();
        LogitsRequest { offset, view: LogitsView::Gather { sampling, ids: ids.to_vec() } }
    }

    #[test]
    fn what_was_joined_comes_apart_again() {
        let requests = vec![
            gather(1, &[5], 1.0),
            gather(2, &[6], 1.0),
            gather(3, &[7], 1.0),
            // Another position, other parameters, several ids, another view.
            gather(5, &[8], 1.0),
            gather(6, &[8], 0.5),
            gather(7, &[1, 2], 0.5),
            gather(8, &[3], 0.5),
            LogitsRequest { offset: 9, view: LogitsView::Full },
        ];
        let encoded = encode_requests(&requests);
        assert_eq!(encoded.len(), 6);
        let (decoded, runs) = decode_requests("rows", encoded, 10, &LIMITS).unwrap();
        assert_eq!(decoded, requests);
        let lengths: Vec<usize> = runs.iter().map(|run| run.length).collect();
        assert_eq!(lengths, [3, 1, 1, 1, 1, 1]);

        let results: Vec<LogitsResult> = requests
            .iter()
            .map(|request| match &request.view {
                LogitsView::Gather { ids, .. } => {
                    let token = |&id: &u32| TokenProbability { id, probability: 0.5 / f64::from(id) };
                    LogitsResult::Gathered(ids.iter().map(token).collect())
                }
                _ => LogitsResult::Full((0..16u8).map(f32::from).collect()),
            })
            .collect();
        let rows = encode_results(results.clone(), &runs);
        assert_eq!(rows.len(), 6);
        assert_eq!(decode_results(&requests, rows.clone(), 16), Ok(results));
        // Too few, too many, in another order, a run that is too long.
        let broken: [fn(&mut Vec<wire::Row>); 4] = [
            |rows| drop(rows.pop()),
            |rows| rows.push(rows[5].clone()),
            |rows| rows.swap(0, 1),
            |rows| {
                if let Some(Content::Gathered(run)) = &mut rows[0].content {
                    run.probabilities.push(0.5);
                }
            },
        ];
        for breaks in broken {
            let mut rows = rows.clone();
            breaks(&mut rows);
            assert!(decode_results(&requests, rows, 16).is_err());
        }
    }

    #[test]
    fn a_run_without_ids_is_one_empty_lookup() {
        let warp = Some(SamplingParams::RAW.into());
        let view = View::Gather(wire::Gather { warp, ids: Vec::new(), each: true });
        let (decoded, runs) =
            decode_requests("rows", vec![wire::RowRequest { offset: 1, view: Some(view) }], 2, &LIMITS).unwrap();
        assert_eq!(decoded, [gather(1, &[], 1.0)]);
        assert_eq!(runs, [LogitsRun { offset: 1, length: 1 }]);
    }
}
