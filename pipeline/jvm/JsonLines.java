package trecpipeline;

import java.nio.charset.CharacterCodingException;
import java.text.ParseException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;

/**
 * Lines of JSON: an object with strings, and beside them objects with strings; Anserini's have id and contents, BEIR's
 * _id, text and maybe a title, which then comes first, on a line of its own.
 */
final class JsonLines {
  private final byte[] block;
  private int at;
  private Text docid, contents, title, text; // of the line at hand

  private JsonLines(byte[] block) {
    this.block = block;
  }

  /** Fails where anything about a line is out of the ordinary, right or wrong. */
  static List<Line> read(byte[] block) throws ParseException, CharacterCodingException {
    JsonLines reader = new JsonLines(block);
    List<Line> lines = new ArrayList<>();
    while (reader.at < block.length) {
      lines.add(reader.line());
    }
    return lines;
  }

  private Line line() throws ParseException, CharacterCodingException {
    docid = contents = title = text = null;
    need('{');
    do {
      String key = key();
      if (next() == '{') {
        at++;
        strings(key);
      } else {
        take(key, string());
      }
    } while (goesOn());
    if (at < block.length && block[at++] != '\n' || docid == null || contents == null && text == null) {
      throw unusual();
    }
    if (contents != null) {
      return new Line(docid, contents);
    }
    boolean titled = title != null && !title.string().isEmpty();
    return new Line(docid, titled ? Text.of(title.string() + "\n" + text.string()) : text);
  }

  private void take(String key, Text value) throws ParseException {
    switch (key) {
      case "id", "_id" -> docid = only(docid, value);
      case "contents" -> contents = only(contents, value);
      case "title" -> title = only(title, value);
      case "text" -> text = only(text, value);
      case "docid", "docno" -> throw unusual(); // other names of the id
      default -> {}
    }
  }

  private Text only(Text before, Text value) throws ParseException {
    if (before != null) {
      throw unusual();
    }
    return value;
  }

  /** Passes over an object of strings, which is nobody's id or text. */
  private void strings(String key) throws ParseException, CharacterCodingException {
    switch (key) {
      case "id", "_id", "docid", "docno", "contents", "title", "text" -> throw unusual();
      default -> {}
    }
    if (next() == '}') {
      at++;
      return;
    }
    do {
      key();
      string();
    } while (goesOn());
  }

  private String key() throws ParseException, CharacterCodingException {
    String key = string().string();
    need(':');
    return key;
  }

  /** Whether a comma follows and not the end of the object. */
  private boolean goesOn() throws ParseException {
    byte sign = next();
    at++;
    if (sign != ',' && sign != '}') {
      throw unusual();
    }
    return sign == ',';
  }

  private void need(char sign) throws ParseException {
    if (next() != sign) {
      throw unusual();
    }
    at++;
  }

  /** The next sign that is no blank; line ends are none. */
  private byte next() throws ParseException {
    while (at < block.length && block[at] == ' ') {
      at++;
    }
    if (at == block.length) {
      throw unusual();
    }
    return block[at];
  }

  private Text string() throws ParseException, CharacterCodingException {
    need('"');
    int begin = at;
    int start = at;
    StringBuilder whole = null;
    while (true) {
      byte sign = special();
      if (sign == '"') {
        String rest = Text.decoded(block, start, at);
        String string = whole == null ? rest : whole.append(rest).toString();
        return new Text(string, whole == null, block, begin, at++);
      }
      if (sign != '\\') {
        throw unusual();
      }
      whole = whole == null ? new StringBuilder() : whole;
      whole.append(Text.decoded(block, start, at++)).append(escaped());
      start = ++at;
    }
  }

  /** Goes to the next sign of a string that does not stand for itself; 0 where there is none. */
  private byte special() {
    for (; at < block.length; at++) {
      byte sign = block[at];
      if (sign == '"' || sign == '\\' || sign >= 0 && sign < ' ') {
        return sign;
      }
    }
    return 0;
  }

  /** Stands at the sign behind the backslash, and then at the last one of the escape. */
  private String escaped() throws ParseException {
    byte sign = at < block.length ? block[at] : 0;
    if (sign == 'u') {
      char first = hex();
      if (!Character.isSurrogate(first)) {
        return String.valueOf(first);
      }
      // Two that make a character; lone ones are no text.
      if (Character.isHighSurrogate(first) && at + 2 < block.length && block[at + 1] == '\\' && block[at + 2] == 'u') {
        at += 2;
        char second = hex();
        if (Character.isLowSurrogate(second)) {
          return new String(new char[] {first, second});
        }
      }
      throw unusual();
    }
    int which = "bfnrt\"\\/".indexOf(sign);
    if (which < 0) {
      throw unusual();
    }
    return "\b\f\n\r\t\"\\/".substring(which, which + 1);
  }

  private char hex() throws ParseException {
    int value = 0;
    for (int last = at + 4; at < last; ) {
      if (++at >= block.length || !HexFormat.isHexDigit(block[at])) {
        throw unusual();
      }
      value = value << 4 | HexFormat.fromHexDigit(block[at]);
    }
    return (char) value;
  }

  private ParseException unusual() {
    return new ParseException("", at);
  }
}
