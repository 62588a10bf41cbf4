package trecpipeline;

import java.io.IOException;
import java.util.Arrays;
import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.analysis.CharArraySet;
import org.apache.lucene.analysis.LowerCaseFilter;
import org.apache.lucene.analysis.StopFilter;
import org.apache.lucene.analysis.TokenFilter;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.Tokenizer;
import org.apache.lucene.analysis.en.EnglishPossessiveFilter;
import org.apache.lucene.analysis.en.KStemFilter;
import org.apache.lucene.analysis.en.PorterStemFilter;
import org.apache.lucene.analysis.standard.StandardTokenizer;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
import org.apache.lucene.analysis.tokenattributes.PositionIncrementAttribute;

/**
 * The terms of Anserini's DefaultEnglishAnalyzer, by the same filters; what they make of a word is remembered by each
 * thread, since most words of a text have been there before.
 */
public final class EnglishWords extends Analyzer {
  private final String stemmer;
  private final CharArraySet stopwords;

  /** @param stemmer porter, krovetz or none */
  public EnglishWords(String stemmer, CharArraySet stopwords) {
    this.stemmer = stemmer;
    this.stopwords = stopwords;
  }

  @Override
  protected TokenStreamComponents createComponents(String field) {
    Tokenizer words = new StandardTokenizer();
    return new TokenStreamComponents(words, new Remembering(words));
  }

  private TokenStream filters(TokenStream word) {
    TokenStream terms = new StopFilter(new LowerCaseFilter(new EnglishPossessiveFilter(word)), stopwords);
    return switch (stemmer) {
      case "porter" -> new PorterStemFilter(terms);
      case "krovetz" -> new KStemFilter(terms);
      case "none" -> terms;
      default -> throw new IllegalArgumentException(stemmer);
    };
  }

  /**
   * A word is kept with its term in a piece of 64 bytes, as processors fetch them: both lengths, the word's characters,
   * the term's. Longer ones are not kept.
   */
  private final class Remembering extends TokenFilter {
    private static final int WORDS = 1 << 15;
    private static final int PIECE = 32;
    private static final int LONGEST = (PIECE - 2) / 2;
    private static final int WORD = 2;
    private static final int TERM = WORD + LONGEST;

    private final CharTermAttribute term = addAttribute(CharTermAttribute.class);
    private final PositionIncrementAttribute step = addAttribute(PositionIncrementAttribute.class);
    private final OneWord word = new OneWord(input);
    private final TokenStream filters = filters(word);
    private final char[] kept = new char[WORDS * PIECE];

    Remembering(TokenStream words) {
      super(words);
    }

    @Override
    public boolean incrementToken() throws IOException {
      int left = 0; // places of words that are no terms
      while (input.incrementToken()) {
        if (becomesTerm()) {
          step.setPositionIncrement(step.getPositionIncrement() + left);
          return true;
        }
        left += step.getPositionIncrement();
      }
      return false;
    }

    private boolean becomesTerm() throws IOException {
      int length = term.length();
      if (length > LONGEST) {
        return word.through(filters);
      }
      char[] buffer = term.buffer();
      int hash = 0;
      for (int at = 0; at < length; at++) {
        hash = 31 * hash + buffer[at];
      }
      int piece = ((hash ^ hash >>> 15) & WORDS - 1) * PIECE;
      int from = piece + WORD;
      if (kept[piece] == length && Arrays.equals(kept, from, from + length, buffer, 0, length)) {
        term.copyBuffer(kept, piece + TERM, kept[piece + 1]);
        return kept[piece + 1] > 0;
      }
      kept[piece] = 0; // nothing, should a filter fail
      System.arraycopy(buffer, 0, kept, from, length);
      int found = word.through(filters) ? term.length() : 0;
      kept[piece] = (char) (found <= LONGEST ? length : 0);
      kept[piece + 1] = (char) found;
      System.arraycopy(term.buffer(), 0, kept, piece + TERM, Math.min(found, LONGEST));
      return found > 0;
    }
  }

  /** The word at hand, once; then the end. */
  private static final class OneWord extends TokenFilter {
    private boolean given;

    OneWord(TokenStream words) {
      super(words);
    }

    boolean through(TokenStream filters) throws IOException {
      given = false;
      return filters.incrementToken();
    }

    @Override
    public boolean incrementToken() {
      boolean now = !given;
      given = true;
      return now;
    }
  }
}
