// Sends METHOD URL BODY, as often as they are given, with the JDK's own client as it is by default.
// Prints a line of status and body for each answer.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

class Jdk {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        for (int n = 0; n < arguments.length; n += 3) {
            var request = HttpRequest.newBuilder(URI.create(arguments[n + 1]))
                    .header("content-type", "application/json")
                    .method(arguments[n], BodyPublishers.ofString(arguments[n + 2]))
                    .build();
            var answer = client.send(request, BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
