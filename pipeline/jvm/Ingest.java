package trecpipeline;

import io.anserini.collection.SourceDocument;
import io.anserini.index.IndexCollection;
import io.anserini.index.generator.DefaultLuceneDocumentGenerator;
import io.anserini.index.generator.GeneratorException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.text.ParseException;
import java.util.ArrayList;
import java.util.List;
import java.util.StringJoiner;
import org.apache.lucene.index.IndexWriter;

import static java.nio.charset.StandardCharsets.ISO_8859_1;
import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Puts whole lines into indexes, and says what they were. Documents are Anserini's own, made by its generator,
 * with the text stored as its {@code -storeRaw} stores it.
 */
public final class Ingest {
  private static final int LONGEST_ID = 512;
  private static final byte[] BETWEEN = {0};

  private final List<IndexWriter> writers;
  private final DefaultLuceneDocumentGenerator<SourceDocument> generator;

  /** Which of several indexes a document goes to is a function of its id alone. */
  public Ingest(List<IndexWriter> writers) {
    IndexCollection.Args settings = new IndexCollection.Args();
    settings.storeRaw = true;
    this.writers = List.copyOf(writers);
    this.generator = new DefaultLuceneDocumentGenerator<>(settings);
  }

  /**
   * Adds the documents of some lines; safe for several threads.
   *
   * @param block the lines' bytes, each as the character of the same number: that crosses from Python fastest
   * @param kind "tabbed"; "json"; or "known", which is JSON too, but any id is good: of the others it has to be 1 to
   *     512 printable signs of ASCII, without a blank
   * @return nothing where the lines are not what they should be, and then nothing was added; else three arrays: the
   *     first 64 bits of the SHA-256 of each id; the sum of the SHA-256 of all documents with text (id, a zero, text),
   *     by columns of 32 bits, in 64 bits each; ids of documents without text, one a line
   */
  public ArrayList<byte[]> add(String block, String kind)
      throws IOException, GeneratorException, NoSuchAlgorithmException {
    List<Line> lines;
    try {
      byte[] bytes = block.getBytes(ISO_8859_1);
      lines = kind.equals("tabbed") ? TabbedLines.read(bytes) : JsonLines.read(bytes);
    } catch (ParseException | CharacterCodingException unusual) {
      return new ArrayList<>();
    }
    if (!kind.equals("known") && !lines.stream().allMatch(Ingest::plainId)) {
      return new ArrayList<>();
    }
    MessageDigest digest = MessageDigest.getInstance("SHA-256");
    ByteBuffer ids = ByteBuffer.allocate(Long.BYTES * lines.size());
    long[] sum = new long[digest.getDigestLength() / Integer.BYTES];
    StringJoiner empty = new StringJoiner("\n");
    for (Line line : lines) {
      byte[] id = line.id().getBytes(UTF_8);
      long number = ByteBuffer.wrap(digest.digest(id)).getLong();
      ids.putLong(number);
      if (line.contents().trim().isEmpty()) {
        empty.add(line.id());
        continue;
      }
      digest.update(id);
      digest.update(BETWEEN);
      line.text().digest(digest);
      ByteBuffer content = ByteBuffer.wrap(digest.digest());
      for (int column = 0; column < sum.length; column++) {
        sum[column] += Integer.toUnsignedLong(content.getInt());
      }
      int at = (int) Long.remainderUnsigned(number, writers.size());
      writers.get(at).addDocument(generator.createDocument(line));
    }
    ByteBuffer sums = ByteBuffer.allocate(Long.BYTES * sum.length);
    sums.asLongBuffer().put(sum);
    return new ArrayList<>(List.of(ids.array(), sums.array(), empty.toString().getBytes(UTF_8)));
  }

  private static boolean plainId(Line line) {
    String id = line.id();
    return !id.isEmpty() && id.length() <= LONGEST_ID && id.chars().allMatch(c -> c > ' ' && c < 127);
  }
}
