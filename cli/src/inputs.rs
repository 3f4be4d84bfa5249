//! What a command reads: noted where it is opened, so that nothing the command writes takes its place.
//!
//! The other half is [`partial_file`], which refuses to write what is noted, and [`crate::output_file`], which says so before
//! any work. Standard output and standard error are looked at here: a shell may have them appended to a file.

use std::{
    io::{self, Read},
    path::Path,
};

use moe_run_backends::partial_file;
use moe_run_inspect::taps::{save::MANIFEST, tensor_set::TensorSet};

use crate::CliError;

/// Notes a file that is about to be read. `what` is its place in the sentence "it is …".
///
/// Errors: standard output or standard error goes to that file.
pub fn add(path: &Path, what: &'static str) -> Result<(), CliError> {
    partial_file::add_input(path, what);
    check_streams()
}

/// Notes the file that standard input comes from, if it is one.
///
/// Errors: as for [`add`].
pub fn add_stdin() -> Result<(), CliError> {
    if let Some(file) = streams::file_of(&io::stdin()) {
        partial_file::add_open_input(&file, "what standard input reads");
    }
    check_streams()
}

/// The text of a file, as [`text_of_file`] has it, noted as [`add`] notes it.
///
/// Errors: as for both.
pub fn read_text(path: &Path, what: &'static str) -> Result<String, CliError> {
    add(path, what)?;
    text_of_file(path)
}

/// The text of a file that is read once and may be written afterwards, such as a conversation's. A byte order mark at its
/// beginning is no part of it.
///
/// Errors: it cannot be read or is not UTF-8.
pub fn text_of_file(path: &Path) -> Result<String, CliError> {
    let bytes = std::fs::read(path).map_err(|e| CliError::unreadable(path, &e))?;
    text(bytes).map_err(|why| CliError::bad_input(format!("{}: {why}", path.display())))
}

/// The text of standard input, as [`read_text`] has it.
///
/// Errors: as for [`read_text`].
pub fn read_stdin() -> Result<String, CliError> {
    add_stdin()?;
    let mut bytes = Vec::new();
    io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|e| CliError::bad_input(format!("standard input: cannot read: {e}")))?;
    text(bytes).map_err(|why| CliError::bad_input(format!("standard input: {why}")))
}

/// UTF-8's byte order mark as a character. Some editors and shells write it before a text.
pub const BYTE_ORDER_MARK: char = '\u{FEFF}';

/// The text that bytes are, without a byte order mark.
///
/// Errors: why they are none.
fn text(bytes: Vec<u8>) -> Result<String, String> {
    // UTF-32's little-endian mark begins with UTF-16's.
    let encoding = match bytes.as_slice() {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => Some("UTF-32"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16"),
        _ => None,
    };
    if let Some(encoding) = encoding {
        return Err(format!("{encoding}, by its byte order mark; wanted UTF-8: save it as that"));
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        format!("not UTF-8 at byte {at}; wanted a text")
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// Notes every file of a set of tensors.
///
/// Errors: as for [`add`].
pub fn add_tensors(set: &TensorSet, what: &'static str) -> Result<(), CliError> {
    for tensor in set.tensors.values() {
        partial_file::add_input(&tensor.path, what);
    }
    partial_file::add_input(&set.path.join(MANIFEST), what);
    check_streams()
}

/// Errors: standard output or standard error goes to a file that is read.
pub fn check_streams() -> Result<(), CliError> {
    let (out, err) = (streams::file_of(&io::stdout()), streams::file_of(&io::stderr()));
    for (name, file) in [("standard output", out), ("standard error", err)] {
        if let Some(what) = file.as_ref().and_then(partial_file::input_that_is) {
            return Err(CliError::bad_input(format!(
                "{name}: it goes to {what}, which this command reads; send it elsewhere"
            )));
        }
    }
    Ok(())
}

#[cfg(unix)]
mod streams {
    use std::{
        fs::{File, Metadata},
        os::fd::AsFd,
    };

    /// What a stream is connected to.
    pub fn file_of(stream: &impl AsFd) -> Option<Metadata> {
        File::from(stream.as_fd().try_clone_to_owned().ok()?).metadata().ok()
    }
}

#[cfg(not(unix))]
mod streams {
    use std::fs::Metadata;

    /// Not to be had without the numbers by which a system tells files apart.
    pub fn file_of<T>(_: &T) -> Option<Metadata> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks() {
        let read = |bytes: &[u8]| text(bytes.to_vec());
        assert_eq!(read(b"\xEF\xBB\xBF[1]").as_deref(), Ok("[1]"));
        // One is a mark; what follows is the text's.
        assert_eq!(read("\u{FEFF}\u{FEFF}a\u{FEFF}".as_bytes()).as_deref(), Ok("\u{FEFF}a\u{FEFF}"));
        assert_eq!(read(b"").as_deref(), Ok(""));
        for (bytes, encoding) in [
            (b"\xFF\xFEa\0".as_slice(), "UTF-16"),
            (b"\xFE\xFF\0a", "UTF-16"),
            (b"\xFF\xFE", "UTF-16"),
            (b"\xFF\xFE\0\0a\0\0\0", "UTF-32"),
            (b"\0\0\xFE\xFF\0\0\0a", "UTF-32"),
            (b"ab\xFF", "not UTF-8 at byte 2"),
        ] {
            assert!(read(bytes).is_err_and(|why| why.starts_with(encoding)), "{bytes:x?}");
        }
    }
}
