package trecpipeline;

import java.nio.charset.CharacterCodingException;
import java.text.ParseException;
import java.util.ArrayList;
import java.util.List;

/** Lines of MS MARCO's kind: docid, tab, text. */
final class TabbedLines {
  private TabbedLines() {}

  /** Fails where a line has no tab, there is a carriage return, or something is no UTF-8. */
  static List<Line> read(byte[] block) throws ParseException, CharacterCodingException {
    List<Line> lines = new ArrayList<>();
    int end;
    for (int start = 0; start < block.length; start = end + 1) {
      int tab = -1;
      for (end = start; end < block.length && block[end] != '\n'; end++) {
        if (block[end] == '\r') {
          throw new ParseException("", end);
        }
        if (tab < 0 && block[end] == '\t') {
          tab = end;
        }
      }
      if (tab < 0) {
        throw new ParseException("", start);
      }
      Text docid = Text.of(Text.decoded(block, start, tab));
      lines.add(new Line(docid, Text.of(Text.decoded(block, tab + 1, end))));
    }
    return lines;
  }
}
