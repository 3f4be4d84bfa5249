//! Models split over several files, `<name>-00001-of-0000N.gguf`. Whether a file is a part is what its metadata says;
//! its name then only tells where the others are.

use std::path::{Path, PathBuf};

use super::{GgufError, Metadata, keys};

/// Which part of how many a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SplitPart {
    /// From 0.
    pub no: usize,
    pub count: usize,
}

const HINT: &str = "name the parts as they were published, <name>-00001-of-0000N.gguf, in one directory";

fn invalid(file: &str, what: &str, found: String, wanted: String) -> GgufError {
    GgufError::Invalid { file: file.to_owned(), what: what.to_owned(), found, wanted, hint: HINT }
}

/// Which part a file is by its metadata; `None` when it is a whole model.
pub(super) fn of(file: &str, metadata: &Metadata) -> Result<Option<SplitPart>, GgufError> {
    let Some(count) = metadata.opt_usize(keys::SPLIT_COUNT)? else { return Ok(None) };
    if count <= 1 {
        return Ok(None);
    }
    let no = metadata.usize(keys::SPLIT_NO)?;
    if no >= count {
        let what = format!("metadata key {:?}", keys::SPLIT_NO);
        return Err(invalid(file, &what, no.to_string(), format!("less than the number of parts, {count}")));
    }
    Ok(Some(SplitPart { no, count }))
}

/// The paths of all parts, given that of one.
pub(super) fn paths(path: &Path, file: &str, this: &SplitPart) -> Result<Vec<PathBuf>, GgufError> {
    let suffix = |no: usize| format!("-{:05}-of-{:05}.gguf", no + 1, this.count);
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&suffix(this.no)) else {
        return Err(invalid(
            file,
            "the name of a part of a split model",
            format!("{name:?}"),
            format!("a name that ends in {:?}, as its metadata says", suffix(this.no)),
        ));
    };
    Ok((0..this.count).map(|no| path.with_file_name(format!("{stem}{}", suffix(no)))).collect())
}

/// Checks that a file opened as part `no` of `count` says so itself.
pub(super) fn check(file: &str, metadata: &Metadata, no: usize, count: usize) -> Result<(), GgufError> {
    let wanted = Some(SplitPart { no, count });
    let found = of(file, metadata)?;
    if found != wanted {
        let found = match found {
            Some(p) => format!("part {} of {}", p.no + 1, p.count),
            None => "a whole model".to_owned(),
        };
        return Err(invalid(file, "the metadata", found, format!("part {} of {count}", no + 1)));
    }
    Ok(())
}

/// Checks the number of tensors in all parts against what the first part states.
pub(super) fn check_total(metadata: &Metadata, found: usize) -> Result<(), GgufError> {
    match metadata.opt_usize(keys::SPLIT_TENSORS_COUNT)? {
        Some(stated) if stated != found => Err(GgufError::Invalid {
            file: metadata.origin().to_owned(),
            what: "the model's parts".to_owned(),
            found: format!("{found} tensors"),
            wanted: format!("{stated}, as metadata key {:?} states", keys::SPLIT_TENSORS_COUNT),
            hint: "fetch all parts of one and the same conversion",
        }),
        _ => Ok(()),
    }
}
