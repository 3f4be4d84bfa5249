//! The byte-level alphabet of GPT-2: each byte is written as one printable character, so that a vocabulary is text.
//!
//! Bytes that are printable in Latin-1 stand for themselves; the other 68, in ascending order, are U+0100, U+0101, ….

/// Whether a byte stands for itself.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character of each byte.
const ALPHABET: [char; 256] = {
    let mut alphabet = ['\0'; 256];
    let mut next = 0x100u32;
    let mut byte = 0usize;
    while byte < 256 {
        let code = if is_printable(byte as u8) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        alphabet[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("codes below U+0200 are characters"),
        };
        byte += 1;
    }
    alphabet
};

/// The byte of each character below U+0144, the alphabet's end; the characters in between are not in it.
const BYTES: [Option<u8>; 0x144] = {
    let mut bytes = [None; 0x144];
    let mut byte = 0usize;
    while byte < 256 {
        bytes[ALPHABET[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

/// Bytes → characters.
pub fn to_alphabet(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| ALPHABET[usize::from(b)]).collect()
}

/// Characters → bytes; `None` where a character is not in the alphabet.
pub fn from_alphabet(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| BYTES.get(c as usize).copied().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let all: Vec<u8> = (0..=255).collect();
        let text = to_alphabet(&all);
        assert_eq!(from_alphabet(&text), Some(all));
        let mut characters: Vec<char> = text.chars().collect();
        characters.sort_unstable();
        characters.dedup();
        assert_eq!(characters.len(), 256);
    }

    #[test]
    fn known_characters_of_gpt2() {
        assert_eq!(to_alphabet(b" \n\t!\xAD\xFF"), "ĠĊĉ!ŃÿX".trim_end_matches('X'));
        assert_eq!(from_alphabet("日"), None);
        assert_eq!(from_alphabet(" "), None);
    }
}
