//! Runs of rows: the same lookup in row after row travels as one request and one answer.
//!
//! A block of drafts is judged by one probability per row. Apart, each would take the warp again and the tags of a message
//! of its own; as a run it takes the id and eight bytes.

use crate::wire::worker::row::Content;
use crate::wire::worker::row_request::View;
use crate::wire::worker::{Gather, Gathered, Row, RowRequest};

/// Joins neighbouring lookups of one id each, under one warp in consecutive rows.
#[must_use]
pub fn join_requests(requests: Vec<RowRequest>) -> Vec<RowRequest> {
    let mut joined: Vec<RowRequest> = Vec::with_capacity(requests.len());
    for request in requests {
        if let Some(last) = joined.last_mut()
            && let (Some(View::Gather(run)), Some(View::Gather(next))) = (&mut last.view, &request.view)
            && run.warp == next.warp
            && next.ids.len() == 1
            && (run.each || run.ids.len() == 1)
            && request.offset as usize == last.offset as usize + run.ids.len()
        {
            run.each = true;
            run.ids.extend(&next.ids);
        } else {
            joined.push(request);
        }
    }
    joined
}

/// Views that a request stands for: at least one.
#[must_use]
pub fn views(request: &RowRequest) -> usize {
    match &request.view {
        Some(View::Gather(Gather { ids, each: true, .. })) => ids.len().max(1),
        _ => 1,
    }
}

/// Takes runs apart. Also says how many requests each of `requests` stood for: at least one, since a run of no rows stays
/// as it is.
#[must_use]
pub fn split_requests(requests: Vec<RowRequest>) -> (Vec<RowRequest>, Vec<usize>) {
    let (mut apart, mut lengths) = (Vec::with_capacity(requests.len()), Vec::with_capacity(requests.len()));
    for request in requests {
        let before = apart.len();
        match request.view {
            Some(View::Gather(Gather { warp, ids, each: true })) if !ids.is_empty() => {
                let one = |id| Some(View::Gather(Gather { warp, ids: vec![id], each: false }));
                let offsets = request.offset..=u32::MAX;
                apart.extend(offsets.zip(ids).map(|(offset, id)| RowRequest { offset, view: one(id) }));
            }
            _ => apart.push(request),
        }
        lengths.push(apart.len() - before);
    }
    (apart, lengths)
}

/// Joins the answers to requests that [`split_requests`] took apart.
#[must_use]
pub fn join_rows(rows: Vec<Row>, lengths: &[usize]) -> Vec<Row> {
    let mut rows = rows.into_iter();
    let joined = lengths.iter().filter_map(|&length| {
        let mut run = rows.next()?;
        for row in rows.by_ref().take(length.saturating_sub(1)) {
            if let (Some(Content::Gathered(run)), Some(Content::Gathered(next))) = (&mut run.content, row.content) {
                run.probabilities.extend(next.probabilities);
            }
        }
        Some(run)
    });
    joined.collect()
}

/// Takes the answers to runs apart; what is no answer to a run of that length stays as it is.
#[must_use]
pub fn split_rows(rows: Vec<Row>, lengths: &[usize]) -> Vec<Row> {
    let mut apart = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        match row.content {
            Some(Content::Gathered(Gathered { probabilities }))
                if lengths.get(index).is_some_and(|&length| length > 1 && length == probabilities.len()) =>
            {
                let one = |probability| Some(Content::Gathered(Gathered { probabilities: vec![probability] }));
                let offsets = row.offset..=u32::MAX;
                apart.extend(
                    offsets.zip(probabilities).map(|(offset, probability)| Row { offset, content: one(probability) }),
                );
            }
            content => apart.push(Row { offset: row.offset, content }),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::worker::{Full, SamplingParams};

    fn gather(offset: u32, ids: &[u32], temperature: f64) -> RowRequest {
        let warp = Some(SamplingParams { temperature, top_p: 1.0, top_k: 0 });
        RowRequest { offset, view: Some(View::Gather(Gather { warp, ids: ids.to_vec(), each: false })) }
    }

    #[test]
    fn what_was_joined_comes_apart_again() {
        let full = RowRequest { offset: 9, view: Some(View::Full(Full::default())) };
        let requests = vec![
            gather(1, &[5], 1.0),
            gather(2, &[6], 1.0),
            gather(3, &[7], 1.0),
            // Another row, another warp, several ids, another view.
            gather(5, &[8], 1.0),
            gather(6, &[8], 0.5),
            gather(7, &[1, 2], 0.5),
            gather(8, &[3], 0.5),
            full,
        ];
        let joined = join_requests(requests.clone());
        assert_eq!(joined.len(), 6);
        let (apart, lengths) = split_requests(joined);
        assert_eq!(apart, requests);
        assert_eq!(lengths, [3, 1, 1, 1, 1, 1]);

        let warp = Some(SamplingParams { temperature: 1.0, top_p: 1.0, top_k: 0 });
        let empty = RowRequest { offset: 1, view: Some(View::Gather(Gather { warp, ids: Vec::new(), each: true })) };
        assert_eq!(split_requests(vec![empty.clone()]), (vec![empty], vec![1]));

        let row = |offset, probabilities: &[f64]| Row {
            offset,
            content: Some(Content::Gathered(Gathered { probabilities: probabilities.to_vec() })),
        };
        let rows = vec![row(1, &[0.5]), row(2, &[0.25]), row(3, &[0.125]), row(7, &[0.5, 0.5])];
        let lengths = [3, 1];
        let joined = join_rows(rows.clone(), &lengths);
        assert_eq!(joined, [row(1, &[0.5, 0.25, 0.125]), row(7, &[0.5, 0.5])]);
        assert_eq!(split_rows(joined, &lengths), rows);
    }
}
