package trecpipeline;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.security.MessageDigest;
import java.util.HexFormat;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Some text of a block of lines.
 *
 * @param plain whether it stands in the block just so, and would in a string of JSON
 */
record Text(String string, boolean plain, byte[] block, int start, int end) {
  /** What stands nowhere. */
  static Text of(String string) {
    return new Text(string, false, null, 0, 0);
  }

  /** Bytes that have to be UTF-8. */
  static String decoded(byte[] block, int start, int end) throws CharacterCodingException {
    String text = new String(block, start, end - start, UTF_8);
    if (text.indexOf('\uFFFD') >= 0) { // stands for what is no UTF-8, or for itself
      UTF_8.newDecoder().decode(ByteBuffer.wrap(block, start, end - start));
    }
    return text;
  }

  /** Goes into a digest as UTF-8. */
  void digest(MessageDigest digest) {
    if (plain) {
      digest.update(block, start, end - start);
    } else {
      digest.update(string.getBytes(UTF_8));
    }
  }

  /** The inside of a string of JSON, as Jackson writes it. */
  String quoted() {
    if (plain) {
      return string;
    }
    StringBuilder out = new StringBuilder(string.length() + string.length() / 16 + 16);
    int from = 0;
    for (int at = 0; at < string.length(); at++) {
      char sign = string.charAt(at);
      if (sign >= ' ' && sign != '"' && sign != '\\') {
        continue;
      }
      out.append(string.substring(from, at)).append('\\'); // append(string, from, at) goes sign by sign
      int which = "\b\f\n\r\t\"\\".indexOf(sign);
      if (which >= 0) {
        out.append("bfnrt\"\\".charAt(which));
      } else {
        out.append('u').append(HexFormat.of().withUpperCase().toHexDigits(sign));
      }
      from = at + 1;
    }
    return from == 0 ? string : out.append(string.substring(from)).toString();
  }
}
